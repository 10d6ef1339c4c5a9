"""Tiny imitations of well-known public data sets as they are downloaded, each read with the settings that
docs/reference/data_layouts.md gives for it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from config import load as config
from data import sources

ROOT = Path(__file__).parents[2]
Files = dict[str, int | str | bytes]


@dataclass
class Layout:
    """`files` by path: text, bytes, or how many images a folder holds (`{}` is their number)."""

    files: Files
    classes: tuple[str, ...]
    train: int
    val: int = 0
    test: int = 0
    settings: str = ""
    says: tuple[str, ...] = ()
    root: str = "."
    extra: Callable[[Path], None] = field(default=lambda _: None)


def png(seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    return bytes(cv2.imencode(".png", rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))[1])


def rows(header: str, line: str, count: int, *labels: str) -> str:
    return "\n".join([header, *(line.format(i=i, label=labels[i % len(labels)]) for i in range(count))]) + "\n"


def parquet(path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    names = ["angular_leaf_spot", "bean_rust", "healthy"]
    features = {"image": {"_type": "Image"}, "labels": {"names": names, "_type": "ClassLabel"}}
    for split, count in (("train", 6), ("validation", 3), ("test", 3)):
        images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)]
        table = pa.table({"image": images, "labels": pa.array([i % 3 for i in range(count)], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (path / "data").mkdir(exist_ok=True)
        pq.write_table(table, path / f"data/{split}-00000-of-00001.parquet")


def medmnist(path: Path) -> None:
    arrays: dict[str, Any] = {}
    for split, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    np.savez(path / "pneumoniamnist.npz", **arrays)


def shards(path: Path) -> None:
    for shard in range(2):
        with tarfile.open(path / f"{shard:03d}.tar", "w") as tar:
            for i in range(3):
                for suffix, content in (("png", png(i)), ("cls", b"%d" % (i % 2))):
                    member = tarfile.TarInfo(f"{shard}{i:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


LAYOUTS = {
    "TF Flowers": Layout(
        {"flower_photos/daisy/{}_n.jpg": 3, "flower_photos/roses/{}_n.jpg": 2, "flower_photos/LICENSE.txt": "CC"},
        ("daisy", "roses"),
        5,
    ),
    "Intel Image Classification": Layout(
        {
            **{f"seg_train/seg_train/{name}/{{}}.jpg": 3 for name in ("forest", "sea")},
            **{f"seg_test/seg_test/{name}/{{}}.jpg": 2 for name in ("forest", "sea")},
            "seg_pred/seg_pred/{}.jpg": 3,
        },
        ("forest", "sea"),
        6,
        test=4,
        says=("3 images in seg_pred/",),
    ),
    "Chest X-Ray Pneumonia": Layout(
        {
            **{f"chest_xray/train/{name}/{{}}.jpeg": 3 for name in ("NORMAL", "PNEUMONIA")},
            **{f"chest_xray/val/{name}/{{}}.jpeg": 1 for name in ("NORMAL", "PNEUMONIA")},
            **{f"chest_xray/test/{name}/{{}}.jpeg": 2 for name in ("NORMAL", "PNEUMONIA")},
            "__MACOSX/chest_xray/._x.jpeg": "",
        },
        ("NORMAL", "PNEUMONIA"),
        6,
        2,
        4,
    ),
    "Dogs vs. Cats": Layout(
        {"train/cat.{}.jpg": 3, "train/dog.{}.jpg": 3, "test/{}.jpg": 4, "sampleSubmission.csv": "id,label\n1,0\n"},
        ("cat", "dog"),
        6,
        test=4,
        settings=r"--data.label_pattern '^([a-z]+)\.'",
    ),
    "Dog Breed Identification": Layout(
        {
            "labels.csv": rows("id,breed", "{i:032x},{label}", 6, "collie", "pug"),
            **{f"train/{i:032x}.jpg": "" for i in range(6)},
            **{f"test/{i:032x}.jpg": "" for i in range(9, 12)},
            "sample_submission.csv": "id,collie,pug\n",
        },
        ("collie", "pug"),
        6,
        test=3,
        says=("labels.csv, images in column 'id', labels in column 'breed'",),
    ),
    "Cassava Leaf Disease": Layout(
        {
            "train.csv": rows("image_id,label", "{i}.jpg,{label}", 6, "0", "1"),
            "train_images/{}.jpg": 6,
            "test_images/{}.jpg": 2,
            "label_num_to_disease_map.json": "{}",
            "sample_submission.csv": "image_id,label\n0.jpg,0\n",
        },
        ("0", "1"),
        6,
        test=2,
    ),
    "APTOS 2019": Layout(
        {
            "train.csv": rows("id_code,diagnosis", "{i:06x},{label}", 6, "0", "2", "4"),
            **{f"train_images/{i:06x}.png": "" for i in range(6)},
            "test.csv": "id_code\n0000aa\n0000ab\n",
            **{f"test_images/0000a{i}.png": "" for i in "ab"},
            "sample_submission.csv": "id_code,diagnosis\n0000aa,0\n",
        },
        ("0", "2", "4"),
        6,
        test=2,
    ),
    "Plant Pathology 2020": Layout(
        {
            "train.csv": "image_id,healthy,multiple_diseases,rust,scab\nTrain_0,1,0,0,0\nTrain_1,0,1,0,0\n"
            "Train_2,0,0,1,0\nTrain_3,0,0,0,1\n",
            "test.csv": "image_id\nTest_0\nTest_1\n",
            "images/Train_{}.jpg": 4,
            "images/Test_{}.jpg": 2,
        },
        ("healthy", "multiple_diseases", "rust", "scab"),
        4,
        test=2,
        says=("4 one-hot columns (healthy, multiple_diseases, rust, ...)",),
    ),
    "HAM10000": Layout(
        {
            "HAM10000_metadata.csv": rows(
                "lesion_id,image_id,dx,dx_type,age,sex,localization",
                "HAM_{i},ISIC_{i:07d},{label},histo,80.0,male,scalp",
                6,
                "bkl",
                "nv",
            ),
            **{f"HAM10000_images_part_1/ISIC_{i:07d}.jpg": "" for i in range(3)},
            **{f"HAM10000_images_part_2/ISIC_{i:07d}.jpg": "" for i in range(3, 6)},
            "hmnist_8_8_L.csv": "pixel0000,label\n1,2\n",
        },
        ("bkl", "nv"),
        6,
        says=("labels in column 'dx'",),
    ),
    "ISIC 2018 Task 3": Layout(
        {
            "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": "image,MEL,NV\n"
            "ISIC_0,1.0,0.0\nISIC_1,0.0,1.0\nISIC_2,1.0,0.0\n",
            "ISIC2018_Task3_Training_Input/ISIC_{}.jpg": 3,
            "ISIC2018_Task3_Training_Input/ATTRIBUTION.txt": "",
        },
        ("MEL", "NV"),
        3,
        settings="--data.table ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv",
    ),
    "Oxford-IIIT Pet": Layout(
        {
            "images/Abyssinian_{}.jpg": 3,
            "images/great_pyrenees_{}.jpg": 3,
            "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\nAbyssinian_0 1 1 1\n",
            "annotations/trimaps/Abyssinian_{}.png": 1,
        },
        ("Abyssinian", "great_pyrenees"),
        6,
        settings=r"--data.label_pattern '^(.+)_\d+\.jpg'",
        says=("1 image in annotations/trimaps/",),
        root=".",
    ),
    "Oxford-IIIT Pet, its list": Layout(
        {
            "images/Abyssinian_{}.jpg": 2,
            "images/beagle_{}.jpg": 2,
            "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\n#1:37 Class ids\nAbyssinian_0 1 1 1\n"
            "Abyssinian_1 1 1 1\nbeagle_0 2 2 1\nbeagle_1 2 2 1\n",
        },
        ("1", "2"),
        4,
        settings="--data.table annotations/list.txt --data.target_column column_2",
    ),
    "FGVC-Aircraft": Layout(
        {
            "data/images/100{}.jpg": 4,
            "data/images_variant_train.txt": "1000 707-320\n1001 Boeing 717\n1002 707-320\n1003 Boeing 717\n",
        },
        ("707-320", "Boeing 717"),
        4,
        settings="--data.table data/images_variant_train.txt",
    ),
    "CUB-200-2011": Layout(
        {
            "CUB_200_2011/images/001.Black_footed_Albatross/B_{}.jpg": 3,
            "CUB_200_2011/images/002.Laysan_Albatross/L_{}.jpg": 3,
            "CUB_200_2011/images.txt": "1 001.Black_footed_Albatross/B_0.jpg\n",
            "CUB_200_2011/parts/parts.txt": "1 back\n",
            "attributes.txt": "1 has_bill_shape::curved\n",
        },
        ("001.Black_footed_Albatross", "002.Laysan_Albatross"),
        6,
    ),
    "Stanford Dogs": Layout(
        {
            "Images/n02085620-Chihuahua/n02085620_{}.jpg": 3,
            "Images/n02085782-Japanese_spaniel/n02085782_{}.jpg": 3,
            "Annotation/n02085620-Chihuahua/n02085620_0": "<annotation>",
        },
        ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"),
        6,
        says=("1 file without suffix",),
    ),
    "Caltech-101": Layout(
        {
            "caltech-101/101_ObjectCategories/accordion/image_{}.jpg": 3,
            "caltech-101/101_ObjectCategories/BACKGROUND_Google/image_{}.jpg": 3,
            "caltech-101/Annotations/accordion/annotation_0001.mat": "",
        },
        ("BACKGROUND_Google", "accordion"),
        6,
        says=("1 file .mat",),
    ),
    "Food-101": Layout(
        {
            "food-101/images/apple_pie/{}.jpg": 3,
            "food-101/images/waffles/{}.jpg": 3,
            "food-101/meta/train.txt": "apple_pie/1\n",
            "food-101/meta/classes.txt": "apple_pie\n",
        },
        ("apple_pie", "waffles"),
        6,
    ),
    "EuroSAT": Layout({"2750/Forest/Forest_{}.jpg": 3, "2750/River/River_{}.jpg": 3}, ("Forest", "River"), 6),
    "GTSRB": Layout(
        {
            "Train.csv": rows("Width,Height,ClassId,Path", "30,30,{label},Train/{label}/{i}.png", 6, "0", "1"),
            "Test.csv": "Width,Height,ClassId,Path\n53,54,16,Test/00000.png\n42,45,1,Test/00001.png\n",
            "Meta.csv": "Path,ClassId\nMeta/0.png,0\n",
            **{f"Train/{i % 2}/{i}.png": "" for i in range(6)},
            "Test/0000{}.png": 2,
            "Meta/{}.png": 2,
        },
        ("0", "1"),
        6,
        test=2,
        says=("2 images in Meta/",),
    ),
    "Imagenette": Layout(
        {
            **{f"imagenette2/{s}/{n}/{n}_{{}}.JPEG": 3 for s in ("train", "val") for n in ("n01440764", "n03888257")},
            "imagenette2/noisy_imagenette.csv": "path,noisy_labels_0,noisy_labels_1,is_valid\n"
            "train/n01440764/n01440764_0.JPEG,n01440764,n01440764,False\n"
            "val/n03888257/n03888257_0.JPEG,n03888257,n01440764,True\n",
        },
        ("n01440764", "n03888257"),
        6,
        6,
        says=("noisy_imagenette.csv is not used: ",),
    ),
    "Tiny ImageNet": Layout(
        {
            "tiny-imagenet-200/train/n01443537/images/n01443537_{}.JPEG": 3,
            "tiny-imagenet-200/train/n01629819/images/n01629819_{}.JPEG": 3,
            "tiny-imagenet-200/val/images/val_{}.JPEG": 4,
            "tiny-imagenet-200/val/val_annotations.txt": "val_0.JPEG\tn01443537\t0\t32\t44\t62\n",
            "tiny-imagenet-200/test/images/test_{}.JPEG": 2,
            "tiny-imagenet-200/wnids.txt": "n01443537\n",
        },
        ("n01443537", "n01629819"),
        6,
        test=2,
        says=("val/ has no class folders of tiny-imagenet-200/train/, so it is not used", "4 images in"),
    ),
    "ImageNet-1k (CLS-LOC)": Layout(
        {
            "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_{}.JPEG": 3,
            "ILSVRC/Data/CLS-LOC/train/n01443537/n01443537_{}.JPEG": 3,
            "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{}.JPEG": 2,
            "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{}.JPEG": 2,
            "LOC_train_solution.csv": "ImageId,PredictionString\n"
            + "".join(f"n01440764_{i},n01440764 {i} 1 2 3\nn01443537_{i},n01443537 {i} 1 2 3\n" for i in range(3)),
            "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\n",
        },
        ("n01440764", "n01443537"),
        6,
        test=2,
        says=("so it is not used",),
    ),
    "CIFAR-10 as PNG": Layout(
        {f"cifar10/{split}/{name}/{{}}.png": 3 for split in ("train", "test") for name in ("airplane", "frog")}
        | {"cifar10/labels.txt": "airplane\nfrog\n"},
        ("airplane", "frog"),
        6,
        test=6,
    ),
    "MNIST as PNG": Layout(
        {f"mnist_png/{split}/{name}/{{}}.png": 2 for split in ("training", "testing") for name in ("0", "1", "10")},
        ("0", "1", "10"),
        6,
        test=6,
    ),
    "Cats and Dogs filtered": Layout(
        {
            f"cats_and_dogs_filtered/{split}/{name}/{name}.{{}}.jpg": 2
            for split in ("train", "validation")
            for name in ("cats", "dogs")
        }
        | {"cats_and_dogs_filtered/vectorize.py": ""},
        ("cats", "dogs"),
        4,
        4,
        says=("1 file .py",),
    ),
    "Brain Tumor MRI": Layout(
        {f"{split}/{name}/Te_{{}}.jpg": 2 for split in ("Training", "Testing") for name in ("glioma", "notumor")},
        ("glioma", "notumor"),
        4,
        test=4,
    ),
    "BIRDS 525": Layout(
        {
            **{f"{split}/{name}/{{}}.jpg": 2 for split in ("train", "valid", "test") for name in ("CROW", "EMU")},
            "birds.csv": "class id,filepaths,labels,data set,scientific name\n"
            + "".join(
                f"{i}.0,{split}/{name}/{n}.jpg,{name},{split},X\n"
                for split in ("train", "valid", "test")
                for i, name in enumerate(("CROW", "EMU"))
                for n in range(2)
            ),
        },
        ("CROW", "EMU"),
        4,
        4,
        4,
        says=("birds.csv, images in column 'filepaths', labels in column 'labels', splits in column 'data set'",),
    ),
    "Paddy Disease": Layout(
        {
            "train.csv": rows("image_id,label,variety,age", "{i}.jpg,{label},ADT45,45", 6, "blast", "normal"),
            **{f"train_images/{('blast', 'normal')[i % 2]}/{i}.jpg": "" for i in range(6)},
            "test_images/2000{}.jpg": 2,
        },
        ("blast", "normal"),
        6,
        test=2,
    ),
    "Histopathologic Cancer Detection": Layout(
        {
            "train_labels.csv": rows("id,label", "{i:040x},{label}", 4, "0", "1"),
            **{f"train/{i:040x}.tif": "" for i in range(4)},
            **{f"test/{i:040x}.tif": "" for i in range(5, 7)},
            "sample_submission.csv": "id,label\n",
        },
        ("0", "1"),
        4,
        test=2,
    ),
    "Dacon": Layout(
        {
            "train.csv": rows("id,img_path,label", "TRAIN_{i},./train/{i}.jpg,{label}", 4, "a", "b"),
            "test.csv": "id,img_path\nTEST_0,./test/0.jpg\nTEST_1,./test/1.jpg\n",
            "train/{}.jpg": 4,
            "test/{}.jpg": 2,
            "sample_submission.csv": "id,label\nTEST_0,a\nTEST_1,a\n",
        },
        ("a", "b"),
        4,
        test=2,
        says=("images in column 'img_path', labels in column 'label'",),
    ),
    "Hugging Face imagefolder": Layout(
        {
            **{f"{split}/{{}}.png": 4 for split in ("train", "validation")},
            **{
                f"{split}/metadata.jsonl": "".join(
                    json.dumps({"file_name": f"{i}.png", "label": "xy"[i % 2], "box": [1, 2]}) + "\n" for i in range(4)
                )
                for split in ("train", "validation")
            },
        },
        ("x", "y"),
        4,
        4,
    ),
    "Hugging Face Parquet (beans)": Layout(
        {"README.md": "# beans"}, ("angular_leaf_spot", "bean_rust", "healthy"), 6, 3, 3, extra=parquet
    ),
    "WebDataset": Layout({"classnames.txt": "cat\ndog\n"}, ("cat", "dog"), 6, extra=shards),
    "MedMNIST": Layout({}, ("0", "1"), 6, 2, 4, extra=medmnist, root="pneumoniamnist.npz"),
    "SUN397": Layout(
        {f"SUN397/{name[0]}/{name}/sun_{{}}.jpg": 2 for name in ("abbey", "alley", "bar", "beach")},
        ("abbey", "alley", "bar", "beach"),
        8,
        settings="--data.label_pattern '([^/]+)/[^/]+$'",
    ),
}


def build(root: Path, layout: Layout) -> Path:
    for name, content in layout.files.items():
        many = [name.format(i) for i in range(content)] if isinstance(content, int) else [name]
        for one in many:
            path = root / one
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else b"an image" * isinstance(content, int))
    layout.extra(root)
    return root / layout.root


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_data_set_is_read_as_it_was_downloaded(name: str, tmp_path: Path) -> None:
    import shlex

    layout = LAYOUTS[name]
    root = build(tmp_path, layout)
    settings = config.parse(["--data.root", str(root), *shlex.split(layout.settings)], "test").data
    table = sources.load(settings)
    assert table.class_names == layout.classes
    counts = {"train": layout.train + layout.val} if table.fold_of is None else {}
    if table.fold_of is not None:
        counts = {"train": int((table.fold_of == -1).sum()), "val": int((table.fold_of == 0).sum())}
    assert counts == {"train": layout.train, **({"val": layout.val} if layout.val else {})}
    test = sources.test_split(settings)
    assert (len(test.ids) if test else 0) == layout.test
    said = "\n".join(table.summary)
    assert all(line in said for line in layout.says), said
    assert len(set(table.ids)) == len(table.ids)
    again = sources.load(settings)
    assert (again.ids, again.labels.tolist()) == (table.ids, table.labels.tolist())


def test_every_layout_is_in_the_documentation_with_its_settings() -> None:
    page = (ROOT / "docs/reference/data_layouts.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    for name, layout in LAYOUTS.items():
        assert name in lines, f"docs/reference/data_layouts.md has no row for {name}"
        shown = layout.settings.replace("|", "\\|")
        assert shown in lines[name], f"docs/reference/data_layouts.md gives other settings for {name}"
