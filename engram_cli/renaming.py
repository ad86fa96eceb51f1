"""Renames that never replace by accident: onto a free name, or two names exchanged in one step.

Linux does both in one system call, renameat2. Where libc or the file system lacks it, `rename_new`
takes the nearest safe way and `exchange` says that it cannot.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = frozenset((errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP))
_NO_LINKS = frozenset((errno.EPERM, errno.EMLINK, *_UNSUPPORTED))


def rename_new(source: Path, target: Path) -> None:
    """Rename `source` to `target`. Raises FileExistsError when there is something at `target`."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if stat.S_ISDIR(os.lstat(source).st_mode):
        try:
            os.rename(source, target)  # a folder replaces no file, and no folder with files
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(source, target)
    else:
        os.unlink(source)


def exchange(one: Path, two: Path) -> bool:
    """Exchange what two names stand for, in one step; False where the system cannot.

    Raises FileNotFoundError when one of them is missing.
    """
    return _renameat2(one, two, _EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    call = _libc_renameat2()
    if call is None:
        return False
    sys.audit("os.rename", str(source), str(target), -1, -1)  # as os.rename says it
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@lru_cache(maxsize=1)
def _libc_renameat2() -> Any:
    """The function of libc, None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        name = ctypes.c_char_p
        call.argtypes = (ctypes.c_int, name, ctypes.c_int, name, ctypes.c_uint)
        call.restype = ctypes.c_int
    return call
