"""Which documents of a text are trained on, which settings are chosen by, and which are only scored.

No document is held: a text is read once to count and hash its documents, then again each time that they are
needed. What the first reading found is remembered for texts that a hash identifies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness import endings, files, registry, strict_json
from harness.config import DatasetsData, EmbeddedData, FilesData, TaskData
from harness.digests import Digests
from harness.engine.data.documents import documents_of_dataset, documents_of_files, existing_file
from harness.engine.data.tasks import training_texts
from harness.engine.data.token_cache import TextHash, TokenCache, code_version, text_sha256

#: The revision of a data set that names one state of it for ever.
COMMIT = re.compile(r"[0-9a-f]{40}")
#: Documents after which it is told how far the work is.
REPORTED = 10_000


@dataclass(frozen=True)
class Documents:
    """Some documents of a text in order, read anew each time that they are iterated over.

    They are those from number `first` to before `stop` of what `read` yields; a single one is cut, once for
    each of `cuts`, into two at a share, of which a side is kept. `sha256` is the hash of the whole text.
    """

    read: Callable[[], Iterable[str]]
    sha256: str
    first: int
    stop: int
    cuts: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of(cls, documents: Sequence[str]) -> Documents:
        """Return documents that are in memory."""
        return cls(lambda: documents, text_sha256(documents), 0, len(documents))

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[str]:
        return self.each(lambda document: None)

    def each(self, note: Callable[[str], None]) -> Iterator[str]:
        """Yield the documents while `note` is called with each of the whole text, to its end."""
        for number, document in enumerate(self.read()):
            note(document)
            if self.first <= number < self.stop:
                for share, side in self.cuts:
                    document = cut(document, share)[side]
                yield document

    def divided(self, share: float) -> tuple[Documents, Documents]:
        """Return the documents in two parts, of which the last has about a share of them.

        Each has at least one; a single document is cut at a line end near the same share, so that a novel
        works too.
        """
        count = len(self)
        if count == 1:
            first, last = (replace(self, cuts=(*self.cuts, (share, side))) for side in (0, 1))
            return first, last
        place = self.first + max(1, min(count - 1, round(count * (1 - share))))
        return replace(self, stop=place), replace(self, first=place)


def cut(text: str, share: float) -> tuple[str, str]:
    """Cut a text in two at a line end, so that the second part has about a share of it."""
    least = int(len(text) * (1 - share))
    found = text.find("\n", least)
    place = found if found > 0 else least
    return text[:place], text[place:].strip()


class Parts(NamedTuple):
    """The documents of a text by purpose, in order, none of which is in two; a name and a revision.

    `trained` are trained on, settings are chosen by `validation`, and `heldout` is only scored in the end.
    """

    trained: Documents
    validation: Documents
    heldout: Documents
    name: str
    revision: str | None


def parts_of(
    config: EmbeddedData | FilesData | DatasetsData | TaskData, cache: TokenCache | None = None
) -> Parts:
    """Return the parts of a text; a bundled world has others to choose settings by and to score."""
    none = Documents.of(())
    if isinstance(config, EmbeddedData):
        world = registry.embedded_world()
        found = world.documents(config.world, "train", config.documents)
        texts = Documents.of([document.text for document in found])
        return Parts(texts, none, none, f"world-{config.world}", str(world.WORLD_VERSION))
    revision: str | None
    if isinstance(config, TaskData):
        listed, name, revision = training_texts(config)
        documents, held = Documents.of(listed), none
    else:
        documents, name, revision = documents_of(config, cache)
        documents, held = documents.divided(config.holdout)
    validation = none
    if config.validation is not None:
        documents, validation = documents.divided(config.validation)
    return Parts(documents, validation, held, name, revision)


def documents_of(
    config: FilesData | DatasetsData, cache: TokenCache | None = None
) -> tuple[Documents, str, str | None]:
    """Return all documents of a user's text, with a name and a revision for the record.

    The text is read, unless the cache knows how many documents it has. UserError for one that cannot be.
    """
    read: Callable[[], Iterator[str]]
    revision: str | None = None
    if isinstance(config, FilesData):
        name = ", ".join(existing_file(path).name for path in config.paths)
        read = partial(documents_of_files, config)
    else:
        name, revision = f"{config.id}/{config.name or 'default'}/{config.split}", config.revision
        read = partial(documents_of_dataset, config)
    count, sha256 = _counted(config, read, cache)
    return Documents(read, sha256, 0, count), name, revision


def _counted(
    config: FilesData | DatasetsData, read: Callable[[], Iterable[str]], cache: TokenCache | None
) -> tuple[int, str]:
    """Return the number of documents and the hash of the text."""
    folder = None if cache is None else cache.digests.folder
    key = None if cache is None or folder is None else _key(config, cache.digests)
    report = (lambda text: None) if cache is None else cache.report
    if folder is None or key is None:
        return _count(read(), report)
    place = folder / "texts" / f"{key}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(place.read_bytes())
        if known["check"] == _check(key, known["documents"], known["sha256"]):
            return int(known["documents"]), str(known["sha256"])
    found = _count(read(), report)
    if key == _key(config, Digests(folder)):  # nothing was changed while it was read
        content = {"documents": found[0], "sha256": found[1], "check": _check(key, *found)}
        with suppress(OSError):  # the next process reads the text again
            files.replace(place, strict_json.text(content))
    return found


def _count(documents: Iterable[str], report: Callable[[str], None]) -> tuple[int, str]:
    text = TextHash()
    for document in documents:
        text.add(document)
        if text.documents % REPORTED == 0:
            report(f"{text.documents:,} documents counted")
    return text.documents, text.hexdigest()


def _key(config: FilesData | DatasetsData, digests: Digests) -> str | None:
    """Return a hash of all that decides the documents; None where only reading them tells, as of a branch."""
    content: list[Any] = [config.field, config.template]
    if isinstance(config, FilesData):
        content.append(config.separator)
        content += [[path.name.lower(), digests.of(path)] for path in map(existing_file, config.paths)]
    else:
        content += [config.id, config.name, config.split, config.limit, files.installed("datasets")]
        if (folder := Path(config.id)).is_dir():
            below = (path for path in files.visible(folder, "**/*") if path.is_file())
            content.append(digests.of_each((path.relative_to(folder).as_posix(), path) for path in below))
        elif COMMIT.fullmatch(config.revision):
            content.append(config.revision)
        else:
            return None
    content.append(code_version([existing_file, strict_json.parse, endings.kind]))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check(*content: Any) -> str:
    """Return what tells a damaged entry."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
