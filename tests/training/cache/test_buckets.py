"""Buckets: the rules of a VAE, the nearest aspect, no needless enlarging, and starts of clips."""

from __future__ import annotations

import math

import pytest

from freqformer.training.cache.buckets import Bucket, Buckets


def make(sizes=((480, 832),), frames=(17, 81), *, fps=16.0, compression=(4, 8), multiple=None):
    return Buckets.of(sizes, frames, fps, compression=compression, multiple=multiple)


def test_every_bucket_keeps_the_rules_of_the_vae() -> None:
    buckets = make(sizes=((480, 832), (240, 416)))
    for (height, width), row in zip(((240, 416), (480, 832)), buckets.areas, strict=True):
        assert (height, width) in row
        assert all(h % 16 == 0 and w % 16 == 0 for h, w in row)
        assert all(0.8 < h * w / (height * width) < 1.25 for h, w in row)
        assert len({w > h for h, w in row}) == 2


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ((1080, 1920), (480, 832)),
        ((1920, 1080), (832, 480)),
        ((700, 700), (624, 624)),
        # Enlarging would only blur it.
        ((240, 416), (240, 416)),
        ((100, 100), (320, 320)),
    ],
)
def test_the_nearest_aspect_of_the_largest_area(shown, expected) -> None:
    buckets = make(sizes=((480, 832), (240, 416)))
    bucket = buckets.of_picture(*shown)
    assert bucket.frames == 1
    nearest = abs(math.log(bucket.width / bucket.height) - math.log(shown[1] / shown[0]))
    assert nearest < 0.12
    assert (bucket.height, bucket.width) == expected


def test_the_most_frames_that_fit() -> None:
    buckets = make()
    assert buckets.of_video(480, 832, 5.1) == Bucket(81, 480, 832)
    # 81 frames end 5 s after the first, whose own time counts too.
    assert buckets.of_video(480, 832, 5.0) == Bucket(17, 480, 832)
    assert buckets.of_video(480, 832, 1.01) == Bucket(17, 480, 832)
    assert buckets.of_video(480, 832, 1.0) is None
    assert buckets.starts(Bucket(17, 480, 832), 4.5) == [0, 17 / 16, 34 / 16, 51 / 16]
    assert buckets.starts(Bucket(17, 480, 832), 1.01) == [0]


def test_other_rules() -> None:
    eight = make(frames=(17, 121), compression=(8, 32), multiple=32)
    assert all(h % 32 == 0 and w % 32 == 0 for row in eight.areas for h, w in row)
    with pytest.raises(ValueError, match=r"frames is 85; 8 \* k \+ 1 is allowed.*81 or 89"):
        make(frames=(85,), compression=(8, 8))
    with pytest.raises(ValueError, match="multiple is 12; multiples of 8 are allowed"):
        make(multiple=12)
    with pytest.raises(ValueError, match="sizes has 480 x 832; multiples of 64 are allowed"):
        make(compression=(8, 32), frames=(17,))
    assert make(sizes=((480, 832),), multiple=8).areas
