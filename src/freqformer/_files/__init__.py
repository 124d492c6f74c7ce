"""How files are written, locked, checked and read: whole or absent, by one process at a time, with
checksums, in bounds.

Every writer of the package goes through here, so that a kill, a full disk or a second process costs
no file of anybody's.
"""

from freqformer._files.checksums import (
    MANIFEST_NAME,
    check_manifest,
    check_seal,
    read_manifest,
    sealed,
    write_manifest,
)
from freqformer._files.errors import FileError
from freqformer._files.locking import locked
from freqformer._files.owning import output_folder
from freqformer._files.reading import read_bytes, read_json
from freqformer._files.writing import (
    remove_folder,
    write_bytes,
    write_json,
    write_text,
    writing_file,
    writing_folder,
)

__all__ = [
    "MANIFEST_NAME",
    "FileError",
    "check_manifest",
    "check_seal",
    "locked",
    "output_folder",
    "read_bytes",
    "read_json",
    "read_manifest",
    "remove_folder",
    "sealed",
    "write_bytes",
    "write_json",
    "write_manifest",
    "write_text",
    "writing_file",
    "writing_folder",
]
