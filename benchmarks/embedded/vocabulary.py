"""The words of the invented worlds, all spelt so that no word is part of two lists.

Facts are stored about `PEOPLE` alone. `STRANGERS` only pass through the short stories of the other
skills: they are many, so a model that cannot look back into the text pays for each of them.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words("Mara Tom Anna Bren Cleo Dane Elsa Finn Gwen Hugo Iris Jack Kara Liam Nora Otto")
STRANGERS = _words(
    "Abel Adam Agnes Alan Albert Alice Alma Amos Amy Arthur Asa Astrid Basil Beatrix Ben Bertha Blake "
    "Boris Brian Bruno Carl Carmen Casper Cecil Celia Chloe Clara Clive Colin Conrad Cora Cyril Daisy "
    "Daphne David Della Denis Diana Dora Doris Drew Duncan Edgar Edith Edna Edwin Eli Ellen Elmer Emil "
    "Emma Enid Erica Ernest Esther Ethan Eunice Eva Evan Faith Felix Fiona Flora Floyd Frank Freda "
    "Gavin Gemma George Gerald Gilda Giles Gina Gloria Grace Grant Greta Gustav Hannah Harold Harriet "
    "Harvey Hazel Hector Heidi Helen Henry Herbert Hilda Homer Hope Horace Howard Ida Inga Irene Isaac "
    "Ivan Ivor Ivy Jacob James Jane Jasper Jean Jerome Jesse Joan Joel John Jonas Joyce Judith Julian "
    "June Karen Keith Kenneth Kevin Kirsten Kurt Laura Lawrence Leah Lena Leo Leonard Lester Lewis "
    "Lilian Linda Lionel Lois Louis Lucas Lucy Luther Lydia Mabel Magnus Marcus Margot Marion Martha "
    "Martin Mavis Max Melvin Mercy Michael Mildred Milo Miriam Molly Morris Moses Muriel Myra Nadia "
    "Nathan Ned Nellie Nigel Nina Noel Norman Olaf Olga Oliver Olivia Oscar Oswald Owen Pamela Pearl "
    "Percy Peter Philip Phoebe Piers Polly Quentin Rachel Ralph Ramona Raymond Rex Rhoda Richard Robin "
    "Roland Rosalind Ruby Rufus Rupert Ruth Sally Samuel Sandra Saul Sarah Selma Seth Sidney Silas "
    "Simon Sonia Stella Stephen Susan Sven Sybil Thelma Theodore Thomas Tilda Tobias Ursula Vera Victor "
    "Vincent Viola Wallace Walter Wanda Wendy Wilfred William Winifred Yolanda Yvonne Zelda"
)
TOWNS = _words("Arlen Borvik Celm Dorrin Esker Fallow Gorse Hythe")
REGIONS = _words("coast forest hills plain")
JOBS = _words("baker farmer miller sailor smith tailor teacher weaver")
PETS = _words("cat dog fox goat hen horse rabbit sheep")
COLOURS = _words("red blue green white black brown yellow purple")
PLACES = _words(
    "bridge garden harbour market mill school abbey arena barn beach cabin camp canal castle cave "
    "chapel church clinic college cottage court dam depot dock factory farm ferry fort fountain gallery "
    "gate hall hotel inn island kitchen lake library lighthouse meadow mine museum office orchard "
    "palace park pier pond port prison quarry river shop stable stadium station studio temple theatre "
    "tower tunnel university valley well wharf"
)
OBJECTS = _words(
    "ball book cup drum hat key basket bell belt bottle bowl box brush bucket candle chain chair clock "
    "coat comb crown doll feather flag flute fork glove hammer harp helmet jar jug kettle knife ladder "
    "lamp letter map mask mirror needle pan pen pillow pipe plate purse ribbon ring rope sack scarf "
    "shield shoe spoon stamp stick stone sword ticket torch towel trumpet umbrella vase violin wallet "
    "whistle"
)
GOODS = _words(
    "apples eggs nuts pears beans biscuits buns cakes carrots dates figs grapes lemons limes melons "
    "mushrooms olives onions oranges peaches peppers pies plums pumpkins rolls sweets tarts turnips"
)
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen"
)
