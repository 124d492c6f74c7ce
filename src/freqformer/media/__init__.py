"""Video files: looking at them, reading clips by time, writing MP4, with sound, and contact sheets.

Decoding and encoding is FFmpeg's, by PyAV. Frames are uint8 (F, H, W, 3) RGB tensors: F frames, H
rows, W columns. Times are seconds from the first frame that can be decoded, and follow the time
stamp of each frame, whatever the file's frame rate.

What is shown, and what is not done:

- Rotation, mirroring and pixels that are not square are applied.
- Transparent pixels are composited over black: the colours hidden under them never show.
- HDR (PQ, HLG) and the wide primaries of BT.2020 become BT.709, by FFmpeg's tone mapping. It takes
  seconds to prepare for each size of pictures and kind of HDR, once in a process.
- Of an interlaced frame every second row is taken, which is one moment: `probe_video` logs a
  warning that names the file, once.
- Of several video streams the one is read that FFmpeg's players choose; cover art is never taken
  for video.
- Frames that can't be decoded are left out. A clip that would need one is refused, with the file's
  name; one missing frame is stood in for by its neighbour.
"""

from freqformer.media.frames import enlarge, from_unit, to_unit
from freqformer.media.listing import ENDINGS, list_files, list_videos
from freqformer.media.opening import VideoError
from freqformer.media.probing import VideoInfo, probe_video
from freqformer.media.reading import DecodedVideo, decode_video, read_clip
from freqformer.media.sound import Sound
from freqformer.media.sound_reading import read_sound
from freqformer.media.writing import check_target, contact_sheet, write_video

__all__ = [
    "ENDINGS",
    "DecodedVideo",
    "Sound",
    "VideoError",
    "VideoInfo",
    "check_target",
    "contact_sheet",
    "decode_video",
    "enlarge",
    "from_unit",
    "list_files",
    "list_videos",
    "probe_video",
    "read_clip",
    "read_sound",
    "to_unit",
    "write_video",
]
