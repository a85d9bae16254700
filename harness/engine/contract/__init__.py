"""Does a method keep the contract of `harness/method.py`?"""
