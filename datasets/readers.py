"""The layouts in which data sets are published: which files belong together, what bands and label values they hold.

A reader is data and one method. `reader: NAME` in a domain's config chooses it; bands, label map, scaling and no-data
rule are its own unless the config says otherwise. Licences and citations stand here as the authors give them; check
them before use.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from datasets.files import Found, Item, below, by_name, duplicates, fenced, from_folders, from_list, read_names, unique
from utils.errors import DataError

LANDSAT_8 = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
RED_EDGE = ("rededge1", "rededge2", "rededge3")
SENTINEL_2 = (*LANDSAT_8[:4], *RED_EDGE, "nir", "nir08", "water_vapour", "cirrus", "swir1", "swir2")


@dataclass(frozen=True)
class Published:
    """What is known of a data set, for `python -m datasets check` to compare with: the number of images in its parts,
    and the share of cloud in percent, with where that stands."""

    images: Mapping[str, int]
    cloud: float | None = None
    note: str = ""


class Reader:
    """A plain folder, or a list file.

    Format: `images/` with PNG, JPEG, BMP or TIFF in any sub-folders, and `labels/` with the same paths and stems. Or a
    list of rows `image label`, relative to the root, with which the files may lie anywhere below it.
    Classes: as the config's `label_map` says; 0 clear and 255 cloud without it.
    """

    # names of the bands, in the order of the file or, with a file a band, of the files; None: as the file says
    bands: tuple[str, ...] | None = None
    label_map: Mapping[int, int] = {0: 0, 255: 1}
    nodata: str = "file"
    scene: str | None = None  # regular expression that finds the scene in a name by its first group that matches
    parts: tuple[str, ...] = ()  # what may stand in place of a list file
    listed_by: str = "file"  # what a row of a list file is: "file" for `image label`, "name" for the name of an image
    published: Published | None = None

    def find(self, root: Path, rows: str | None, *, labels: bool, partial: bool = False) -> Found:
        """The images of one of the `parts`, or of a list, or with None all of them; see `files.from_list`."""
        if rows is None:
            return from_folders(root, labels, partial)
        return from_list(root, Path(rows), labels, partial)

    def published_key(self, root: Path, rows: str | None) -> str:
        """Which of the published counts an answer of `find` should have."""
        return Path(rows).stem if rows else "all"

    def list_text(self, items: Sequence[Item], root: Path) -> str:
        """A list file of these images that `find` understands."""
        if self.listed_by == "name":
            return "".join(f"{item.name}\n" for item in items)
        rows = (filter(None, (item.image, item.label)) for item in items)
        return "".join("\t".join(path.relative_to(root).as_posix() for path in row) + "\n" for row in rows)

    def scene_truth(self, root: Path) -> dict[str, Path]:
        """Ground truth of whole scenes, by scene, where labels are published in that form."""
        return {}


class MSCloud(Reader):
    """CloudS26, which the paper calls MS Cloud: 26 WorldView-2 scenes with cloud and snow, cut into tiles.

    Format: `images/<scene>_<x>_<y>.jpg`, 8-bit RGB, and `labels/` of the same stems (PNG); scene 0 to 25, offsets in
    pixels. The list of the released code has 358 more tiles that are named by a date.
    Classes: 0 clear, 1 or 255 cloud. Label values are not documented; another one, such as one for snow, is an error
    until the config's label_map says what it is.
    Source: github.com/zhanggb1997/MTDR-Net-CloudS26 (Baidu). That "MS Cloud" is CloudS26 is an inference.
    Citation: Zhang, Gao, Yang, Yang, Tan, Xu, Wang, JAG 114 (2022) 103070, doi 10.1016/j.jag.2022.103070.
    Licence: academic use only.
    """

    label_map: Mapping[int, int] = {0: 0, 1: 1, 255: 1}
    scene = r"(?:^|/)(\d{1,2})_\d+_\d+$|(?:^|/)(\d\d_\d\d_\d\d)_[^/]*$"
    published = Published({"all": 2328, "train": 2095}, note="counted in the lists of the released code; 2328 follows")


class HRCWHU(Reader):
    """HRC_WHU: 150 RGB images from Google Earth, 0.5 to 15 m, of water, vegetation, urban, snow and barren ground.

    Format: images and masks of any common kind anywhere below the root, in different folders or told apart by a suffix
    of the mask's name (`water_1.tif`, `water_1_ReferenceMask.tif`), or the copy of Cloud-Adapter:
    `img_dir/{train,test}` and `ann_dir/{train,test}`. An image is named by its cover and number.
    Classes: 0 clear, 255 (1 in the copy) cloud; thin cloud counts; shadow is not labelled.
    Parts: `train` and `test` are the folders of the copy or, where there are none, this project's own split, 120 and 30
    images: every fifth image of each cover is for the test. The authors give no split.
    Source: github.com/dr-lizhiwei/HRC_WHU (Baidu, Google Drive).
    Citation: Li, Shen, Cheng, Liu, You, He, ISPRS J. 150 (2019) 197-212, doi 10.1016/j.isprsjprs.2019.02.017.
    Licence: academic use only.
    """

    label_map: Mapping[int, int] = {0: 0, 1: 1, 255: 1}
    scene = r"^([A-Za-z]+_\d+)"
    parts = ("train", "test")
    published = Published(
        {"all": 150, "train": 120, "test": 30}, cloud=40.87, note="cloud: the held-back tiles of the ASDA authors"
    )
    name = re.compile(r"^((?:barren|snow|urban|vegetation|water)_\d+(?:_\d+)?)(.*)$", re.IGNORECASE)
    masks = re.compile(
        r"(^|[^a-z])(ann_dir|anns?|annotations?|labels?|masks?|gts?|ground_?truths?|truths?|refs?|references?\w*)([^a-z]|$)",
        re.IGNORECASE,
    )

    def find(self, root: Path, rows: str | None, *, labels: bool, partial: bool = False) -> Found:
        if rows is not None and rows not in self.parts:
            found = super().find(root, rows, labels=labels, partial=partial)
            named = [(item, self.name.match(Path(item.name).name)) for item in found.items]
            return Found([item._replace(name=name[1]) if name else item for item, name in named], found.faults)
        images: dict[str, list[Path]] = {}
        masks: dict[str, list[Path]] = {}
        astray: list[str] = []
        for path in chain.from_iterable(by_name(root, root, astray).values()):
            if matched := self.name.match(path.stem):
                is_mask = matched[2] or self.masks.search(path.relative_to(root).parent.as_posix())
                (masks if is_mask else images).setdefault(matched[1], []).append(path)
        folders = "a folder called labels, masks, gt, reference or ann_dir"
        faults = astray + [f"{fault} or, if one is a mask, put it into {folders}" for fault in duplicates(images)]
        items = []
        for name, paths in sorted(images.items()):
            mask = masks.get(name, []) if labels else []
            if labels and not mask and not partial:
                faults.append(f"{paths[0]}: has no mask below {root}")
            elif len(mask) > 1:
                faults.append(f"{', '.join(map(str, mask))}: are several masks of {paths[0].name}; keep one of them")
            else:
                items.append(Item(name, (paths[0],), mask[0] if mask else None))
        # Every fifth image of each cover; tiles of one image stay together.
        pictures = sorted({_picture(item) for item in items}, key=_natural)
        covers = groupby(pictures, key=lambda picture: picture.split("_")[0])
        held_back = {picture for _, of_cover in covers for picture in [*of_cover][4::5]}

        def part(item: Item) -> str:
            given = [part for part in self.parts if part in item.image.relative_to(root).parts]
            return given[0] if given else self.parts[_picture(item) in held_back]

        return Found([item for item in items if rows in (None, part(item))], faults)


class Cloud38(Reader):
    """38-Cloud: patches of 384x384 pixels of Landsat-8 scenes, 30 m.

    Format: `38-Cloud_training/train_{red,green,blue,nir,gt}/<band>_patch_<n>_<row>_by_<column>_<scene>.TIF`, 16 bits, a
    file a band; `38-Cloud_test/test_{red,green,blue,nir}` of 20 other scenes, whose truth is whole scenes,
    `Entire_scene_gts/edited_corrected_gts_<scene>.TIF`.
    Classes: 0 clear, 255 cloud. No data: all bands 0; about a third of all patches hold none.
    Parts: `train` is what `training_patches_38-cloud_nonempty.csv` names where that file is there, else as `all`: every
    training patch. `test`: the test patches, without labels; `eval.parts: scenes` scores them by the official rule.
    Source: github.com/SorourMo/38-Cloud-A-Cloud-Segmentation-Dataset, Kaggle data sets of the user sorour.
    Citation: Mohajerani, Saeedi, IGARSS 2019, 1029-1032, doi 10.1109/IGARSS.2019.8898776; Mohajerani, Krammer, Saeedi,
    MMSP 2018, doi 10.1109/MMSP.2018.8547095.
    Licence: the repository carries Apache-2.0; Landsat images are in the public domain.
    """

    bands = ("red", "green", "blue", "nir")
    listed_by = "name"
    nodata = "all_zero"
    scene = r"(LC08_\w+)$"
    parts: tuple[str, ...] = ("train", "all", "test")
    published = Published({"all": 8400, "train": 8400, "train, nonempty": 5155, "test": 9201}, note="official README")
    training: tuple[str, ...] = ("38-Cloud_training/train_{}",)  # folders of a band, as is the next
    test = "38-Cloud_test/test_{}"
    nonempty = "training_patches_38-cloud_nonempty.csv"

    def find(self, root: Path, rows: str | None, *, labels: bool, partial: bool = False) -> Found:
        listed = rows if rows not in self.parts else None
        part = "all" if listed is not None else rows or "train"
        chosen = {"test": (self.test,), "additional": self.training[1:]}.get(part, self.training)
        folders = [root / folder for folder in chosen]
        there = [folder for folder in folders if part == "test" or folder.parent.is_dir()]
        if not there:
            expected = " or ".join(folder.parent.name for folder in folders)
            raise DataError(f"{root}: has no folder {expected}; set the domain's root to the folder that holds it")
        patches = [patch for folder in there for patch in self._patches(folder)]
        if listed is not None:
            return _found(patches, labels, partial, set(self._listed(Path(listed), root)), listed)
        names = self._nonempty(root) if part not in ("all", "test") else None
        return _found(patches, labels and part != "test", partial, names)

    def _patches(self, folders: Path) -> Iterator[tuple[Item, str]]:
        places = {band: folders.with_name(folders.name.format(band)) for band in (*self.bands, "gt")}
        # Paired by name: the order of a folder is nobody's promise.
        patches = {
            path.stem.removeprefix(f"{band}_"): path.suffix
            for band in self.bands
            if places[band].is_dir()
            for path in sorted(places[band].iterdir())
            if path.suffix.lower() in (".tif", ".tiff") and path.stem.startswith(f"{band}_")
        }
        if not patches:
            expected = f"{places['red'].name}/red_patch_*.TIF and other bands"
            raise DataError(f"{folders.parent}: holds no patches; expected {expected}")
        for name, suffix in sorted(patches.items()):
            label = places["gt"] / f"gt_{name}{suffix}"
            files = tuple(places[band] / f"{band}_{name}{suffix}" for band in self.bands)
            yield Item(name, files, label), f"{label}: does not exist, so {name} has no label"

    def published_key(self, root: Path, rows: str | None) -> str:
        part = rows or "train"
        return f"{part}, nonempty" if part in ("train", "additional") and self._nonempty(root) is not None else part

    def _nonempty(self, root: Path) -> set[str] | None:
        lists = [path for path in below(root, root) if path.name.lower() == self.nonempty]
        return set(self._listed(lists[0])) if lists else None

    def _listed(self, rows: Path, root: Path = Path()) -> list[str]:
        """The names in a list: a column `name` as in the official files, or a name a line."""
        lines = read_names(rows, root)
        table = csv.DictReader(lines)
        return [row["name"] for row in table] if "name" in (table.fieldnames or ()) else lines

    def scene_truth(self, root: Path) -> dict[str, Path]:
        start, folder = "edited_corrected_gts_", (root / self.test).with_name("Entire_scene_gts")
        return {path.stem.removeprefix(start): path for path in sorted(folder.glob(f"{start}*")) if path.is_file()}


class Cloud95(Cloud38):
    """95-Cloud: 38-Cloud and 26,301 more training patches of 57 scenes; the test set is the same.

    Format: as 38-Cloud, beside it `95-cloud_training_only_additional_to38-cloud/train_<band>_additional_to38cloud/`.
    Parts: `train` and `all` are both halves as far as they are there, `additional` is the new one, which the ASDA
    authors used alone. `train` and `additional` are what `training_patches_95-cloud_nonempty.csv` names, where it is.
    Source: github.com/SorourMo/95-Cloud-An-Extension-to-38-Cloud-Dataset, Kaggle data sets of the user sorour.
    Citation: Mohajerani, Saeedi, Cloud-Net+, arXiv 2001.08768; and those of 38-Cloud.
    Licence: see the repository; Landsat images are in the public domain.
    """

    parts = ("train", "all", "additional", "test")
    published = Published(
        {"all": 34701, "train": 34701, "additional": 26301, "test": 9201}
        | {"train, nonempty": 21502, "additional, nonempty": 21502 - 5155},
        cloud=27.90,
        note="official README; cloud: the held-back patches of the ASDA authors",
    )
    training = (*Cloud38.training, "95-cloud_training_only_additional_to38-cloud/train_{}_additional_to38cloud")
    nonempty = "training_patches_95-cloud_nonempty.csv"


class ScenesByPattern(Reader):
    """Images that a pattern finds anywhere below the root, each with its label beside it; a list has their names."""

    listed_by = "name"
    nodata = "all_zero"
    pattern: str
    expected: str  # what it finds, for an error

    def item_of(self, image: Path, root: Path) -> tuple[Item, str]:
        """An image with the label that it should have, and what to say where that is missing."""
        raise NotImplementedError

    def find(self, root: Path, rows: str | None, *, labels: bool, partial: bool = False) -> Found:
        if not (images := [path for path in below(root, root) if path.match(self.pattern)]):
            raise DataError(f"{root}: holds no {self.expected}")
        if rows in self.parts:
            images = [image for image in images if rows in image.relative_to(root).parts]
            rows = None
        names = None if rows is None else set(read_names(Path(rows), root))
        return _found([self.item_of(image, root) for image in images], labels, partial, names, rows)


class L8Biome(ScenesByPattern):
    """L8 Biome: 96 whole Landsat-8 scenes, 30 m, in eight biomes.

    Format: a folder a scene (`BC/<scene>/`), `<scene>_B1.TIF` to `_B11.TIF`, 16 bits, and `<scene>_fixedmask.img`. The
    panchromatic band 8 is of another size and left out. No data: all bands 0.
    Classes: 0 fill, 64 shadow, 128 clear, 192 thin cloud, 255 cloud. Shadow is not labelled in every scene.
    Source: landsat.usgs.gov, Landsat 8 cloud cover assessment validation data, doi 10.5066/F7251GDH; about 88 GB.
    Citation: Foga et al., Remote Sensing of Environment 194 (2017) 379-390, doi 10.1016/j.rse.2017.03.026.
    Licence: public domain.
    """

    bands = (*LANDSAT_8, "cirrus", "thermal1", "thermal2")
    numbers = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)
    label_map: Mapping[int, int] = {0: 255, 64: 0, 128: 0, 192: 1, 255: 1}
    scene = r"(LC8\w+)$"
    published = Published({"all": 96}, note="USGS")
    pattern, expected = "*_B4.TIF", "<scene>/<scene>_B4.TIF and its other bands"

    def item_of(self, image: Path, root: Path) -> tuple[Item, str]:
        scene = image.name.removesuffix("_B4.TIF")
        mask = image.with_name(f"{scene}_fixedmask.img")
        files = tuple(image.with_name(f"{scene}_B{number}.TIF") for number in self.numbers)
        return Item(scene, files, mask), f"{mask}: does not exist, so {scene} has no label"


class SPARCS(ScenesByPattern):
    """SPARCS: 80 parts of 1000x1000 pixels of Landsat-8 scenes, 30 m.

    Format: `<scene>_<n>_data.tif`, ten bands of 16 bits, with `<scene>_<n>_mask.png` (USGS, a palette) or `_labels.tif`
    (Oregon State University), anywhere below the root.
    Classes: 0 shadow, 1 shadow over water, 2 water, 3 snow, 4 land, 5 cloud, 6 flooded. No data: all bands 0.
    Source: landsat.usgs.gov, SPARCS validation data, doi 10.5066/F7FB5146.
    Citation: Hughes, Kennedy, Remote Sensing 11 (2019) 2591, doi 10.3390/rs11212591.
    Licence: public domain.
    """

    bands = (*LANDSAT_8, "cirrus", "thermal1", "thermal2")
    label_map: Mapping[int, int] = {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 1, 6: 0}
    scene = r"(LC8\w+?)_\d+$"
    published = Published({"all": 80}, note="USGS")
    pattern, expected = "*_data.tif", "<scene>_<n>_data.tif"

    def item_of(self, image: Path, root: Path) -> tuple[Item, str]:
        name = image.name.removesuffix("_data.tif")
        mask, other = (image.with_name(f"{name}_{end}") for end in ("mask.png", "labels.tif"))
        label = mask if mask.is_file() else other
        return Item(name, (image,), label), f"{image}: has no {mask.name} or {other.name} beside it"


class CloudSEN12(ScenesByPattern):
    """CloudSEN12, the GeoTIFF release: Sentinel-2 L1C patches of 509x509 pixels, 10 m, five of each region.

    Format: `{high,scribble,no-label}/ROI_<n>/<image>/S2L1C.tif`, 13 bands of 16 bits (reflectance times 10,000), and
    `labels/manual_hq.tif` beside it.
    Classes: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow, 99 no label. No data: all bands 0.
    Parts: `high` has a label for every pixel; `scribble` and `no-label` serve as unlabelled images.
    Source: cloudsen12.github.io, doi 10.34911/rdnt.y3xeg3; about 1 TB in all.
    Citation: Aybar et al., Scientific Data 9 (2022) 782, doi 10.1038/s41597-022-01878-2.
    Licence: CC BY-NC 4.0.
    """

    bands = SENTINEL_2
    label_map: Mapping[int, int] = {0: 0, 1: 1, 2: 1, 3: 0, 99: 255}
    scene = r"(ROI_\d+)"
    parts = ("high", "scribble", "no-label")
    published = Published({"high": 10000, "scribble": 10000, "no-label": 29400}, note="five patches of each region")
    pattern, expected = "S2L1C.tif", "high/ROI_<n>/<image>/S2L1C.tif"

    def item_of(self, image: Path, root: Path) -> tuple[Item, str]:
        folder, mask = image.parent, image.parent / "labels" / "manual_hq.tif"
        fault = f"{mask}: does not exist, so {folder.name} has no label; take the part high"
        return Item(folder.relative_to(root).as_posix(), (image,), mask), fault


READERS: dict[str, Reader] = {
    "folder": Reader(),
    "ms_cloud": MSCloud(),
    "hrc_whu": HRCWHU(),
    "cloud38": Cloud38(),
    "cloud95": Cloud95(),
    "l8_biome": L8Biome(),
    "sparcs": SPARCS(),
    "cloudsen12": CloudSEN12(),
}


def find_images(
    root: str | Path,
    rows: str | None = None,
    *,
    reader: str = "folder",
    scene: str | None = None,
    labels: bool,
    partial: bool = False,
) -> Found:
    """The images of a domain in the order of their names, with their scenes, and all that is wrong with the listing.

    `scene` is a regular expression in place of the reader's own. Raises DataError if a folder or list is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set the domain's root to the folder that holds the data")
    known = READERS[reader]
    found = known.find(root, rows, labels=labels, partial=partial)
    inside = fenced(root, found.items)
    items, twice = unique(inside.items)
    if (pattern := scene or known.scene) is not None:
        items = [item._replace(scene=_scene(pattern, item.name)) for item in items]
        if scene is not None and (missing := [item.name for item in items if item.scene is None]):
            lacking = f"{len(missing)} image name(s), such as {missing[0]!r}"
            fix = "mend the domain's scene, or set it to null"
            twice.append(f"the scene pattern {scene!r} finds nothing in {lacking}; {fix}")
    return Found(items, [*found.faults, *inside.faults, *twice])


def _scene(pattern: str, name: str) -> str | None:
    found = re.search(pattern, name)
    return found and next((group for group in found.groups() if group is not None), found[0])


def _found(
    images: Sequence[tuple[Item, str]], labels: bool, partial: bool, names: set[str] | None, listed: str | None = None
) -> Found:
    """The images of these names, or all, each with its label if that is wanted and there. `images` come with the label
    that each should have and what to say where that is missing; `listed` is the list of names, if all must be there."""
    items, faults = [], []
    for item, fault in (image for image in images if names is None or image[0].name in names):
        there = labels and item.label is not None and item.label.is_file()
        if labels and not there and not partial:
            faults.append(fault)
        else:
            items.append(item if there else item._replace(label=None))
    missing = sorted(names - {item.name for item, _ in images}) if names is not None and listed is not None else []
    return Found(items, [*faults, *(f"{listed}: names {name}, which is not there" for name in missing)])


def _picture(item: Item) -> str:
    """The name of the image of HRC_WHU that a tile was cut from: cover and number."""
    return "_".join(item.name.split("_")[:2])


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
