"""The settings about images: what they are, how they are drawn, changed, mixed and labelled by a teacher."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from config.sections.base import CHECK, Column, FoldNumber, Fraction, Positive, Probability, Section, UserPath, distinct


def _pattern(text: str) -> str:
    """A regular expression of one group as it is; a validator that refuses others."""
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise PydanticCustomError(CHECK, "a regular expression ({reason})", {"reason": str(error)}) from error
    if groups != 1:
        raise PydanticCustomError(CHECK, "a regular expression with one group, as in ([a-z]+)")
    return text


class Data(Section):
    """The images and how they reach the model."""

    root: UserPath = Field(
        description="The data set: a folder of class folders, of images with a table of labels, or of Parquet files or"
        " tar shards; a single such file, an .npz, or a URL of shards. See docs/reference/data_layouts.md."
    )
    table: UserPath | None = Field(
        default=None,
        description="The table of the labels, below data.root or anywhere: CSV, TSV, JSON lines, or a list of names and"
        " labels; null finds it.",
    )
    images: tuple[str, ...] = Field(
        default=(),
        description="Folders below data.root in which the images of the table lie; [] looks for them in all of it.",
    )
    image_size: int | None = Field(
        default=None, ge=16, le=4096, description="Side of the square input in pixels; null takes the model's own."
    )
    id_column: Column | None = Field(
        default=None, description="Column of the table that names the image file; null finds it."
    )
    target_column: Column | None = Field(
        default=None, description="Column of the table that holds the class; null finds it."
    )
    label_pattern: Annotated[str, AfterValidator(_pattern)] | None = Field(
        default=None,
        description="Regular expression with one group, the class, that is searched in each file name, such as"
        " '^([a-z]+)[.]', or in its path where it has a slash; null takes the class from folders or a table.",
    )
    follow_links: bool = Field(
        default=False, description="Follow links that lead out of data.root, too; links within it are always followed."
    )
    classes: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        default=(), description="Names of the classes to train on, two or more; [] takes them all."
    )
    workers: int = Field(
        default=0, ge=0, le=1024, description="Loader threads; 0 means one for each core that may be used."
    )
    processes: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        default="auto",
        description="Loader processes in place of threads; 0 is threads; auto starts with threads and goes over to"
        " processes on Linux with more than 8 cores, where training waits for the threads.",
    )
    cache_gb: float = Field(
        default=0.0,
        ge=0,
        description="Most room in GB for a cache of decoded images, made before the first epoch and used by all later"
        " runs; 0 keeps none. Training then sees images whose short side is 1.15 times the model's.",
    )
    cache_dir: UserPath | None = Field(
        default=None, description="Folder of that cache, which machines may share; null is the user's cache folder."
    )
    streaming: bool = Field(
        default=False,
        description="Read tar shards front to back in each epoch: shards are permuted and a shuffle buffer mixes their"
        " images. Shards at a URL are fetched while training, so that the data may be larger than the disk; other kinds"
        " of data sets cannot be streamed.",
    )
    shuffle_buffer: int = Field(
        default=8192, ge=1, description="Images of the shuffle buffers, together (streaming); a few shards' worth."
    )
    streams: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="Shards that are read side by side (streaming): each batch takes equal parts from so many streams,"
        " or from as many fewer as divide it. Any number of ranks sees the same order; where it divides the streams, a"
        " rank reads only its own share of the shards.",
    )
    shard_cache_gb: float = Field(
        default=20.0,
        gt=0,
        description="Room in GB for shards of a URL in the user's cache folder (streaming), shared by all processes of"
        " the machine; shards that are in use may exceed it.",
    )
    resize_mode: Literal["crop", "squash", "letterbox"] | None = Field(
        default=None,
        description="How a picture that is not square becomes square: crop cuts the centre, squash ignores the aspect"
        " ratio, letterbox pads and loses nothing; null takes the model's own.",
    )
    pad: Literal["grey", "background"] = Field(
        default="grey",
        description="What surrounds a letterboxed picture: grey, or the colour of its own border where that is of one"
        " colour, as paper is.",
    )
    resampling: Literal["area", "pillow"] | None = Field(
        default=None,
        description="How pictures are resized for evaluation: pillow as timm does (antialiased filters of Pillow), area"
        " by means of areas, which is faster; null takes the model's own. Training always takes what is fastest.",
    )
    mean: tuple[float, float, float] | None = Field(
        default=None, description="Mean of R, G and B in the range 0 to 1; null takes the model's own."
    )
    std: tuple[Positive, Positive, Positive] | None = Field(
        default=None, description="Standard deviation of R, G and B in the range 0 to 1; null takes the model's own."
    )
    on_bad_image: Literal["error", "skip", "partial"] = Field(
        default="error",
        description="An image that cannot be read: error stops; skip leaves it out of its batch and counts it; partial"
        " takes what remains of a truncated one, the rest grey, names it, and skips others.",
    )
    icc_to_srgb: bool = Field(
        default=False,
        description="Convert the colours of images with an ICC profile, such as Display P3 or Adobe RGB, to sRGB; the"
        " model carries it, so that inference does the same.",
    )
    on_bad_test_image: Literal["prior", "error"] = Field(
        default="prior",
        description="A test image that cannot be read: prior gives its row the classes' shares of the training images"
        " and names it in a warning; error stops.",
    )
    pixel_limit: int = Field(
        default=178_956_970, ge=1, description="Most pixels an image may have before it is refused as unreadable."
    )
    audit: bool = Field(
        default=True,
        description="Look for damaged, duplicate, leaking and odd images before training (once, then cached), and keep"
        " copies of one picture in one fold.",
    )
    audit_actions: UserPath | None = Field(
        default=None,
        description="An audit.csv as `python -m data audit` writes it, edited: what it says is done with the images"
        " (drop, relabel, group, rotate), in memory only.",
    )


class Folds(Section):
    """Which images train a model and which ones judge it."""

    strategy: Literal["auto", "holdout", "stratified", "stratified_group", "repeated"] = Field(
        default="auto",
        description="holdout sets one stratified share aside; stratified makes `count` folds and a model for each;"
        " stratified_group likewise, and parts no group of images; repeated draws stratified folds `repeats` times;"
        " auto takes the data set's own validation split or fold column, and is holdout where it has none. All others"
        " draw folds of all images.",
    )
    n_splits: int = Field(default=5, ge=2, le=1000, description="Number of folds (all kinds but auto and holdout).")
    repeats: int = Field(
        default=2, ge=2, le=100, description="Times that the folds are drawn (repeated); count * repeats models."
    )
    val_fraction: float = Field(default=0.2, gt=0, lt=1, description="Share of the images set aside (holdout, auto).")
    group_column: Column = Field(
        default="group", description="Column of the table that says which images belong together (stratified_group)."
    )
    groups: UserPath | None = Field(
        default=None,
        description="A CSV with columns ID and group of images that belong together, such as near-duplicates"
        " (stratified_group); joined with the column, where the table has it.",
    )
    train: Annotated[tuple[FoldNumber, ...], Field(min_length=1), AfterValidator(distinct)] | None = Field(
        default=None, description="Numbers of the folds to train now, such as [0, 2]; null trains them all."
    )
    file: UserPath | None = Field(
        default=None, description="An existing CSV with columns ID and fold to use in place of drawing folds."
    )


class Mix(Section):
    """Blending pairs of images and their targets: Mixup (Zhang 2018) and CutMix (Yun 2019)."""

    mixup: float = Field(default=0.0, ge=0, description="Alpha of Mixup's Beta distribution; 0 is off.")
    cutmix: float = Field(default=0.0, ge=0, description="Alpha of CutMix's Beta distribution; 0 is off.")
    prob: Probability = Field(default=1.0, description="Probability that a batch (elementwise: an image) is mixed.")
    switch_prob: Probability = Field(default=0.5, description="Probability of CutMix where both are on.")
    mode: Literal["batch", "elementwise"] = Field(
        default="batch", description="Whether a whole batch is mixed in one way, or each of its images in its own."
    )
    off_epochs: int = Field(default=0, ge=0, description="Number of last epochs without mixing.")


class Sampling(Section):
    """How often each image is drawn in an epoch."""

    kind: Literal["plain", "balanced", "square_root"] = Field(
        default="plain",
        description="plain draws every image once; balanced draws all classes equally often, square_root in proportion"
        " to the root of their sizes, both without changing the length of an epoch.",
    )
    oversample_classes: tuple[str, ...] = Field(
        default=(),
        description="Names of classes to oversample, such as [1, 13, 14]; each repetition is augmented anew.",
    )
    oversample_to: int = Field(default=0, ge=0, description="Images of each of these classes per epoch; 0 is off.")


class Mining(Section):
    """Progressive hard-sample mining: images of high loss are drawn more often, but not those of the highest."""

    cap: Fraction = Field(default=0.0, description="Largest share of an epoch's draws that are mined; 0 is off.")
    start_epoch: int = Field(default=3, ge=1, description="First epoch (counted from 0) with mined draws.")
    ramp_epochs: int = Field(default=5, ge=1, description="Epochs in which the share grows to the cap.")
    hard_share: float = Field(default=0.3, gt=0, le=1, description="Share of the images that count as hard.")
    noise_share: Fraction = Field(
        default=0.01, description="Share of highest losses that are suspected of wrong labels: listed, never mined."
    )


class Teacher(Section):
    """Learning from an ensemble's answers, as `python -m infer teacher` writes them: distillation and pseudo labels."""

    file: UserPath | None = Field(
        default=None, description="An .npz of a teacher's answers to the training images; null trains on labels alone."
    )
    weight: Probability = Field(
        default=0.5,
        description="Share of the teacher's answer in the target of a training image; the rest is its label.",
    )
    temperature: float = Field(
        default=1.0, gt=0, le=100, description="Softens the teacher's answers, as softmax(logits / temperature)."
    )
    extra_root: UserPath | None = Field(
        default=None, description="Images without labels to train on besides: a folder, or a CSV with their IDs."
    )
    extra_file: UserPath | None = Field(
        default=None, description="An .npz of a teacher's answers to the images of extra_root: their pseudo labels."
    )
    extra_labels: Literal["soft", "hard"] = Field(
        default="soft", description="Pseudo labels: the teacher's answer itself, or the class that it is surest of."
    )
    extra_weight: float = Field(
        default=1.0, gt=0, le=100, description="Weight of a pseudo-labelled image in the loss; a labelled one has 1."
    )
    min_confidence: Fraction = Field(
        default=0.0, description="Images of extra_root whose likeliest class has a lower probability are left out."
    )
