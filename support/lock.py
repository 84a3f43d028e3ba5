"""A lock: one process at a time works in a run's folder, or on one evaluation's files.

    with Lock(run / ".speciarl.lock", run) as lock:
        ...

It is the system's advisory lock (flock) on a file of its own, so that it ends with its process, however that
dies. The file says who holds it, and is removed at the end; one that a kill has left is simply taken over.
"""

import errno
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

REFUSED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # no locks here at all
TRIES = 100


class Lock:
    """Held from its making until `release`, or to the end of a `with`.

    file: the lock's own, in a folder that is made where it isn't there (and removed again, if nothing has
    come into it). For messages, guarded: what it stands for; option: which one names another place. Raises
    OSError where another process holds it, or where the file can't be written. Where the file system has no
    locks there is a warning instead.
    """

    def __init__(self, file: Path, guarded: Path, option: str = "--out"):
        self.path = file
        self.guarded = guarded
        self.option = option
        self.made = [folder for folder in file.parents if not folder.exists()]  # the innermost first
        self.handle = None
        self.text = b""  # what the file says
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.take()
        except BaseException:
            self.release()
            raise

    def take(self) -> None:
        owner = f"process {os.getpid()} on {socket.gethostname()}".encode()

        # Who held the file before may remove it between our opening and our locking it: then ours guards
        # nothing, and the next try makes a new one.
        for _ in range(TRIES):
            self.handle = self.path.open("a+b", buffering=0)
            self.lock_handle()
            self.handle.truncate(0)
            self.text = b""
            self.handle.write(owner)
            self.text = owner
            if self.is_held():
                return
            self.handle.close()
        raise OSError(f"cannot lock {self.guarded}: {self.path} is removed again and again")

    def lock_handle(self) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self.holder()
            self.handle.close()
            self.handle = None  # it is another's, and not removed
            raise OSError(f"{self.guarded} is in use by {holder}: wait until that has ended, or write "
                          f"elsewhere with {self.option}") from None
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            print(f"warning: {self.guarded} can't be locked here ({error.strerror}): let no other process "
                  "write there", file=sys.stderr)

    def holder(self) -> str:
        """What the file says of its holder."""
        self.handle.seek(0)
        text = self.handle.read(200).decode("utf-8", "replace").strip()
        return text or "another process"

    def is_held(self) -> bool:
        """False once the file, or the folder around it, was deleted, moved or replaced. By what it says: some
        file systems number their files anew."""
        try:
            return self.path.read_bytes() == self.text
        except OSError:
            return False

    def check(self) -> None:
        """Raises OSError where what it guards is no longer there: writing on would begin another."""
        if not self.is_held():
            raise OSError(f"{self.guarded} was deleted or taken over meanwhile")

    def release(self) -> None:
        """The file is removed while it is still locked: nobody can have taken it over."""
        if self.handle is not None:
            if self.is_held():
                with suppress(OSError):
                    self.path.unlink()
            self.handle.close()
            self.handle = None
        for folder in self.made:
            with suppress(OSError):  # something came into it
                folder.rmdir()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error) -> None:
        self.release()
