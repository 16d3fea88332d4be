"""Locations of checkpoints: a folder, or a repository on the Hugging Face hub, which is downloaded file by file."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from keras_clip.presets.tensor_files import sha256

_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass
class Folder:
    """A local directory."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def find(self, filename: str) -> Path | None:
        """The path of the file of that name; None if it does not exist."""
        path = self.path / filename
        return path if path.is_file() else None

    def missing(self, wanted: str) -> Exception:
        """The error to raise if none of the wanted files exists."""
        present = sorted(path.name for path in self.path.iterdir())[:20]
        return FileNotFoundError(f"A directory of weights must have {wanted}. Received: {self.path} with {present}.")


@dataclass
class HubRepository:
    """A repository of the hub, downloaded into the hub's own cache and verified by the hub's digests.

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
        """The path of the file of that name, downloaded unless the cache has it; None if it does not exist.

        Raises:
            OSError: no such repository, no access, no network, or a server error.
            ValueError: the digest of the file is not the one that the hub lists.
        """
        import huggingface_hub
        from huggingface_hub import errors

        try:
            # After one failed connection, only the cache is read.
            offline = self._error is not None
            path = huggingface_hub.hf_hub_download(
                self.repo, filename, revision=self.revision, local_files_only=offline
            )
        except errors.LocalEntryNotFoundError as error:
            # The cache may still have the file of another layout.
            self._error = self._error or ConnectionError(
                f"The hub must be reachable, or its cache must have the file. Received: {filename} of {self.name}: "
                f"{error.__cause__ or error}. Try again with a network, set HF_ENDPOINT to a mirror, or pass a "
                "directory."
            )
            return None
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(f"The repository must have this revision. Received: {self.name}.") from error
        except errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"The repository must exist and be accessible. Received: {self.name}. Check its spelling; for a "
                "private or gated one, log in with `hf auth login` or set HF_TOKEN."
            ) from error
        except (errors.HfHubHTTPError, errors.FileMetadataError, OSError, RuntimeError) as error:
            raise ConnectionError(
                f"The hub must serve {filename} of {self.name}. Received: {error}. Try again: the download resumes "
                "where it stopped."
            ) from error
        _verify(Path(path), self.name)
        return Path(path)

    def missing(self, wanted: str) -> Exception:
        """The error to raise if none of the wanted files can be downloaded."""
        return self._error or FileNotFoundError(f"A repository of weights must have {wanted}. Received: {self.name}.")


def _verify(path, repository):
    """Compares a file with the digest that names it in the cache: SHA-256 of large files, git's SHA-1 of small ones."""
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
            f"The file must have the digest {blob.name} that the hub lists. Received: {path.name} of {repository} with "
            f"{actual}. Delete {blob} and load again."
        )
