"""What the C library does with memory that tensors freed: by default a step gives it back and faults it in again."""

import ctypes

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more
_KEPT_BYTES = 512 << 20


def keep_freed_memory() -> None:
    """Let this process keep freed memory of up to half a GiB, where its C library can be asked to.

    Each step allocates the same tensors again; every page that was given back in between is filled with zeros by
    the system first. Tensors above 32 MiB are given back as before.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: its memory is managed otherwise
        return
    set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    set_option(_TRIM_THRESHOLD, _KEPT_BYTES)
