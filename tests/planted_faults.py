"""Faults of pools that validation must find: how each is planted, and what is reported."""

import made_profiles
import numpy as np

SHARES = "ENUM_TYPE_UNEXPECTED_STRING_VALUES"


def set_to(value, count, *names):
    """A fault: the first rows have another value."""

    def plant(shards):
        for name in names:
            shards["00000"][name][:count] = value

    return plant


def broken(shards):
    made_profiles.break_images(shards["00000"], slice(0, 12))


def blank(shards):
    made_profiles.blank_captions(shards["00000"], slice(0, 12))


def twins(shards):
    shards["00000"]["sha256"][:40] = shards["00000"]["sha256"][40:80]


def same_captions(shards):
    shards["00000"]["text_hash"][:150] = shards["00000"]["text_hash"][0]


def tiny(shards):
    for side in ("width", "height"):
        shards["00000"][side][:30] = 20


def elongated(shards):
    shards["00000"]["height"][:20] = shards["00000"]["width"][:20] * 6


def unscored(shards):
    shards["00000"]["clip_score"][:20] = None


def all_broken(shards):
    made_profiles.break_images(shards["00000"], slice(None))


def one_broken_shard(shards):
    columns = made_profiles.rows(220, "00001")
    made_profiles.break_images(columns, slice(0, 110))
    shards["00001"] = columns


def one_german_shard(shards):
    shards["00001"] = made_profiles.rows(220, "00001")
    shards["00001"]["language"][:] = "de"
    shards["00000"]["language"][:] = "en"


def drifted_scores(shards):
    shards["00000"]["clip_score"] = shards["00000"]["clip_score"] - 0.1


def drifted_formats(shards):
    shards["00000"]["format"][:120] = "PNG"


# Name: how the fault is planted into one clean shard, and the (feature, kind, slice) of each anomaly.
FAULTS = {
    "none": (lambda shards: None, set()),
    "broken images": (broken, {("image_status", SHARES, ""), ("clip_score", "FEATURE_TYPE_LOW_FRACTION_PRESENT", "")}),
    "blank captions": (blank, {("caption_blank", SHARES, "")}),
    "file names as captions": (set_to(True, 20, "file_name_like"), {("caption_file_name", SHARES, "")}),
    "invalid UTF-8": (set_to(False, 2, "utf8_ok"), {("caption_utf8", SHARES, "")}),
    "captions beyond the context": (set_to(90, 20, "tokens"), {("caption_tokens", SHARES, "")}),
    "repeated images": (twins, {("image_repeated", SHARES, "")}),
    "repeated captions": (same_captions, {("caption_repeated", SHARES, "")}),
    "an unexpected format": (set_to("TIFF", 5, "format"), {("format", SHARES, "")}),
    "an unexpected mode": (set_to("CMYK", 6, "mode"), {("mode", SHARES, "")}),
    "tiny images": (tiny, {("shorter_side", SHARES, "")}),
    "elongated images": (elongated, {("aspect", SHARES, "")}),
    "a width of zero": (set_to(0, 1, "width"), {("width", "INT_TYPE_SMALL_INT", "")}),
    "NaN scores": (set_to(float("nan"), 1, "clip_score"), {("clip_score", "FLOAT_TYPE_HAS_NAN", "")}),
    "a score above 1": (set_to(1.5, 1, "clip_score"), {("clip_score", "FLOAT_TYPE_BIG_FLOAT", "")}),
    "an infinite score": (
        set_to(float("-inf"), 1, "clip_score"),
        {("clip_score", "FLOAT_TYPE_HAS_INF", ""), ("clip_score", "FLOAT_TYPE_SMALL_FLOAT", "")},
    ),
    "missing scores": (unscored, {("clip_score", "FEATURE_TYPE_LOW_FRACTION_PRESENT", "")}),
    "no readable image": (
        all_broken,
        {("image_status", SHARES, "")}
        | {(name, "FEATURE_TYPE_NOT_PRESENT", "") for name in ("format", "mode", "shorter_side", "aspect")}
        | {(name, "FEATURE_TYPE_NOT_PRESENT", "") for name in ("width", "height", "clip_score", "score")},
    ),
    "broken images in one shard": (
        one_broken_shard,
        {
            ("image_status", SHARES, ""),
            ("clip_score", "FEATURE_TYPE_LOW_FRACTION_PRESENT", ""),
            ("image_status", "COMPARATOR_L_INFTY_HIGH", "00000"),
            ("image_status", "COMPARATOR_L_INFTY_HIGH", "00001"),
        },
    ),
    "another language in one shard": (
        one_german_shard,
        {
            ("language", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH", "00000"),
            ("language", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH", "00001"),
        },
    ),
}
# The same, for pools that are compared with the clean one.
DRIFTS = {
    "scores": (drifted_scores, {("score", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH", "")}),
    "formats": (drifted_formats, {("format", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH", "")}),
    "broken images": (
        broken,
        {
            ("image_status", SHARES, ""),
            ("clip_score", "FEATURE_TYPE_LOW_FRACTION_PRESENT", ""),
            ("image_status", "COMPARATOR_L_INFTY_HIGH", ""),
        },
    ),
}


def pool(folder, plant):
    """Writes the pool with a fault; returns its folder."""
    shards = {"00000": made_profiles.rows(220)}
    plant(shards)
    made_profiles.write(
        folder,
        {name: {key: np.array(value, object) for key, value in columns.items()} for name, columns in shards.items()},
    )
    return folder
