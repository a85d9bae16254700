"""A value that looks like a secret is refused, and repeated nowhere."""

from __future__ import annotations

import pytest

from harness.credentials import kind_of_secret, refuse_secrets, shown
from harness.errors import UserError

SECRETS = [
    "https://user:PASS@host/x",
    "https://user@host/x",
    "https://:PASS@host",
    "https://user:PA/SS@host/x",
    "git+ssh://user:PASS@host/x",
    "user:PASS@host/x",
    "see user:PASS@host/x",
    "model.id=user:PASS@host/x",
    "model={source: hub, id: 'user:PASS@host/x'}",
    "hf_" + "PASSabcdefghijklmnopqrstuvwxyz1234",
    "id=hf_" + "PASSabcdefg",
    "owner/hf_" + "PASSabcdefghijklmnopqrstuvwxyz1234",
    "ghp_" + "PASSabcdefghijklmnopqrstuvwxyz12345678",
    "github_pat_" + "PASSabcdefghijklmnopqrstu",
    "glpat-" + "PASSabcdefghijklmnop",
    "sk-" + "PASSabcdefghijklmnopqrstuvwxyz",
    "AKIA" + "PASSPASSPASSPASS",
    "https://host/x?access_token=PASS",
    "https://host/x?a=1&X-Amz-Signature=PASS",
    "https://host/x?password=PASS",
    "https%3A%2F%2Fuser%3APASS%40host%2Fx",
    "https://user%3APASS%40host/x",
    "//user:PASS@host/x",
    "run with --password=PASS",
    "--api-key PASS",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_secrets(text, "--model")
    assert str(caught.value).startswith("--model: the value holds a")
    messages = (str(caught.value), shown(text), shown(f"{text} {text}"), shown({"id": text}), shown([text]))
    assert "PASS" not in " ".join(messages)


@pytest.mark.parametrize(
    "text",
    [
        "meta-llama/Llama-2-7b-hf@main",
        "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
        "./my-llama",
        "sign_descent:SignDescent",
        "package.module:Class",
        "https://example.org/@author/post",
        "7b: full",
        "lr 1:2",
        "which rate: 1e-3 @ 100 steps?",
        "C:\\data\\text.txt",
        "hf_llama",
        "./hf_checkpoints",
        "token_mixing",
        "/data/run?x=1",
        "//server/share/a@b",
        "50% of --token-mixing",
        "welore 50 %",
        "method={lora: {rank: 4}}",
    ],
)
def test_what_is_no_secret_is_taken(text: str) -> None:
    assert kind_of_secret(text) is None
    refuse_secrets(text, "--model")


def test_a_value_in_a_message_is_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 5000)) < 70
    assert (shown({}), shown([]), shown(None), shown(1.5)) == ("a section", "a list", "None", "1.5")
