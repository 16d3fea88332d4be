"""Where checkpoints lie: a folder, or a repository on the Hugging Face hub that becomes one, file by file."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from keras_clip.presets.tensor_files import sha256

_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass
class Folder:
    """A directory of this machine."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def find(self, filename: str) -> Path | None:
        """The file of that name; None if there is none."""
        path = self.path / filename
        return path if path.is_file() else None

    def missing(self, wanted: str) -> Exception:
        """The error that says that none of the wanted files is there."""
        present = sorted(path.name for path in self.path.iterdir())[:20]
        return FileNotFoundError(f"A directory of weights must have {wanted}. Received: {self.path} with {present}.")


@dataclass
class HubRepository:
    """A repository of the hub, fetched into the hub's own cache: resumed, kept, and verified by the hub's digests.

    Attributes:
        repo: "organisation/name".
        revision: commit, tag or branch; None: the newest.
    """

    repo: str
    revision: str | None = None
    _error: Exception | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def find(self, filename: str) -> Path | None:
        """The file of that name, downloaded with progress unless the cache has it; None if there is none.

        Raises:
            OSError: no such repository, no access, no network, or a server that fails.
            ValueError: what came is not what the hub says it should be.
        """
        import huggingface_hub
        from huggingface_hub import errors

        try:
            # Whoever did not answer once is not waited for again.
            offline = self._error is not None
            path = huggingface_hub.hf_hub_download(
                self.repo, filename, revision=self.revision, local_files_only=offline
            )
        except errors.LocalEntryNotFoundError as error:
            # Without a network the cache may still have the file of another layout.
            self._error = self._error or ConnectionError(
                f"The hub must be reachable, or the file be in its cache. Received: {filename} of {self.name}: "
                f"{error.__cause__ or error}. Try again with a network, set HF_ENDPOINT to a mirror, or pass a "
                "directory."
            )
            return None
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(f"A repository must have the revision asked for. Received: {self.name}.") from error
        except errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"A repository must exist and be open to you. Received: {self.name}. Check its spelling; for a private "
                "or gated one, log in with `hf auth login` or set HF_TOKEN."
            ) from error
        except (errors.HfHubHTTPError, errors.FileMetadataError, OSError, RuntimeError) as error:
            raise ConnectionError(
                f"The hub must give {filename} of {self.name}. Received: {error}. Try again: what came is kept, and "
                "the download goes on from there."
            ) from error
        _verify(Path(path), self.name)
        return Path(path)

    def missing(self, wanted: str) -> Exception:
        """The error that says that none of the wanted files can be had."""
        return self._error or FileNotFoundError(f"A repository of weights must have {wanted}. Received: {self.name}.")


def _verify(path, repository):
    """Compares a file with the digest that the cache has as its name: sha256 of large files, git's of small ones."""
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name):
        actual = sha256(blob)
    elif _GIT_SHA1.fullmatch(blob.name):
        content = blob.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return
    if actual != blob.name:
        raise ValueError(
            f"The file must have the digest {blob.name}, as the hub says. Received: {path.name} of {repository} with "
            f"{actual}. Delete {blob} and load again."
        )
