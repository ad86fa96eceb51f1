"""How many bytes are free for rows, on a device and in host memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from engram_cli.errors import InputError
from engram_cli.sizes import available_memory, read_size

HOST_MEMORY = "ENGRAM_HOST_MEMORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """Bytes that may be used: on the device and in host memory."""

    hbm: int
    host: int


def free_host_bytes() -> int:
    """Return the free host memory: what the system reports, at most what the control group leaves.

    ENGRAM_HOST_MEMORY=SIZE sets it instead, for machines whose memory grows as it is used. Raises
    InputError for a size that cannot be parsed.
    """
    said = os.environ.get(HOST_MEMORY)
    if said:
        try:
            return read_size(said)
        except ValueError as error:
            raise InputError(f"{HOST_MEMORY}: {error}", "give a size such as 100GB") from None
    found = available_memory()
    if found is not None:
        return found
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    size = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return size if pages == "SC_AVPHYS_PAGES" else size // 2  # macOS tells only what there is


def free_device_bytes(device: torch.device, host: int) -> int:
    """Return the free memory of a device, including what torch reserved and does not use.

    `host`: that of the host, which is what a CPU has.
    """
    if device.type != "cuda":
        return host
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + unused
