"""Read what torch.save wrote, without running code: tensors and plain values only."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mini_chat_gpt.common.errors import UserError


def load_pickle(source: Path, remedy: str) -> Any:
    """The content of a file of torch.save. It is memory-mapped, so that tensors need no memory until they are used.

    Raises UserError for a damaged file, and for one that contains code; the sentence then ends with `remedy`. Raises OSError.
    """
    try:
        if in_zip := zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                entries = archive.infolist()
                # torch.save compresses nothing. Compressed or overlapping entries could take any time to read.
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                if packed or sum(entry.file_size for entry in entries) > source.stat().st_size:
                    raise ValueError("the entries are larger than the file")
                if archive.testzip() is not None:  # torch.load compares no checksums of a memory-mapped file
                    raise ValueError("a checksum differs")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols: the file is read or rejected below
            return torch.load(source, map_location="cpu", weights_only=True, mmap=in_zip)
    except OSError:
        raise
    except Exception as error:  # damaged or malicious bytes make torch raise any exception
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise UserError(
                f"{source} is truncated, damaged or not written by torch.save; download it again."
            ) from None
        raise UserError(
            f"{source} contains pickled Python code ({code[1]}), which is never run here; {remedy}."
        ) from None


def is_plain(tensor: Any) -> bool:
    """Whether this is a tensor of floating-point numbers that are all in the file.

    A view with a stride of 0 can have any size, and would only be as large as it claims when it is copied.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.is_floating_point() and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
