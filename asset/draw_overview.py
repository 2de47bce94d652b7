"""Draw the overview of the method, asset/overview.png: the three stages, and what each loss reads.

    python asset/draw_overview.py

Lengths are pixels of the finished picture, y downwards. The colour of an arrow says whose images it carries; a dashed
arrow carries weights. The small pictures are made from noise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, FancyBboxPatch, Polygon, Rectangle
from PIL import Image

OUTPUT = Path(__file__).with_name("overview.png")
WIDTH, HEIGHT, DPI = 1600, 810, 100
PIXEL = 72 / DPI  # in points, the unit of fonts and lines
TITLE, NAME, TEXT = 25, 21, 19

# Blue and orange of Okabe and Ito, a light teal and a dark vermilion: they differ in lightness too, not in hue alone.
# Losses also have a shape of their own.
SOURCE, TARGET, EASY, HARD = "#0072b2", "#e69f00", "#0fae96", "#a03c00"
LOSS, LOSS_FILL = "#9c1545", "#fde4ec"
INK, GREY, FROZEN, FOLLOWS, RULE, PANEL = "#222222", "#6b6b6b", "#d2d2d2", "#ececec", "#c3c8d0", "#f7f8fa"

Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle by its left upper corner; the points on its sides are where arrows start and end."""

    x: float
    y: float
    w: float
    h: float

    @property
    def centre(self) -> Point:
        return self.x + self.w / 2, self.y + self.h / 2

    def left(self, y: float | None = None) -> Point:
        return self.x, self.centre[1] if y is None else y

    def right(self, y: float | None = None) -> Point:
        return self.x + self.w, self.centre[1] if y is None else y

    def top(self, x: float | None = None) -> Point:
        return self.centre[0] if x is None else x, self.y

    def bottom(self, x: float | None = None) -> Point:
        return self.centre[0] if x is None else x, self.y + self.h


def centred(x: float, y: float, w: float, h: float) -> Box:
    """A box by its centre."""
    return Box(x - w / 2, y - h / 2, w, h)


def words(ax: Axes, at: Point, text: str, size: float = TEXT, colour: str = INK, **style: Any) -> None:
    """Text around a point; a single line stands so that its small letters do, whichever letters it has."""
    x, y = at
    lines = "\n" in text
    style = {"ha": "center", "va": "center" if lines else "baseline", "linespacing": 1.15, "zorder": 6} | style
    ax.text(x, y if lines else y + 0.34 * size, text, size=size * PIXEL, color=colour, **style)


def rounded(ax: Axes, box: Box, radius: float, fill: str, edge: str, width: float, zorder: float = 4) -> Box:
    """A filled rectangle with round corners."""
    style = f"round,pad=0,rounding_size={radius}"
    ax.add_patch(FancyBboxPatch(box[:2], *box[2:], style, fc=fill, ec=edge, lw=width * PIXEL, zorder=zorder))
    return box


def two_lines(ax: Axes, at: Point, name: str, note: str, size: float = TEXT, colour: str = INK) -> None:
    """A name in bold, and below it a note, if there is one."""
    x, y = at
    words(ax, (x, y - 13 if note else y), name, size, colour, weight="bold")
    words(ax, (x, y + 13), note, colour=colour)


def network(ax: Axes, box: Box, name: str, note: str = "", fill: str = "white", at: Point | None = None) -> Box:
    """A network; its name stands in the middle, unless `at` is given."""
    two_lines(ax, at or box.centre, name, note, NAME)
    return rounded(ax, box, 9, fill, INK if fill == "white" else GREY, 2.6)


def heads(ax: Axes, main: Box) -> tuple[Box, Box]:
    """The two heads inside a network; `main` is the place of the left one."""
    both = main, main._replace(x=main.x + main.w + 8)
    for box, name in zip(both, ("main", "aux"), strict=True):
        rounded(ax, box, 5, PANEL, GREY, 1.5, zorder=5)
        words(ax, box.centre, name)
    return both


def pill(ax: Axes, box: Box, name: str, note: str = "") -> Box:
    """A loss; the note says what it compares."""
    two_lines(ax, box.centre, name, note, colour=LOSS)
    return rounded(ax, box, 0.4 * box.h, LOSS_FILL, LOSS, 2)


def arrow(ax: Axes, *points: Point, colour: str = INK, dashed: bool = False) -> None:
    """A line through the points with its tip at the last one."""
    path = np.array(points, float)
    along = (path[-1] - path[-2]) / np.hypot(*(path[-1] - path[-2]))
    across, neck = along[::-1] * (-6.5, 6.5), path[-1] - 13 * along
    x, y = np.vstack([path[:-1], neck + along]).T
    style, height = ((0, (3, 1.5)), 2.0) if dashed else ("-", 3.0)
    ax.add_line(Line2D(x, y, color=colour, lw=3 * PIXEL, ls=style, solid_joinstyle="round", zorder=height))
    ax.add_patch(Polygon([path[-1], neck + across, neck - across], fc=colour, ec="none", zorder=3.5))


def bridge(ax: Axes, at: Point) -> None:
    """A gap in a dashed horizontal line, for the solid one that crosses it."""
    ax.add_patch(Rectangle((at[0] - 8, at[1] - 5), 16, 10, fc=PANEL, ec="none", zorder=2.5))


def frozen_network(ax: Axes, box: Box, name: str) -> Box:
    """A network that no longer changes, with a small closed lock."""
    x, y = box.centre[0] + 47, box.centre[1] + 13
    ax.add_patch(Arc((x, y - 2), 11, 16, theta1=180, theta2=360, color=INK, lw=2.4 * PIXEL, zorder=7))
    ax.add_patch(Rectangle((x - 8, y - 2), 16, 12, fc=INK, ec="none", zorder=7))
    return network(ax, box, name, "frozen", FROZEN)


def clouds(seed: int, size: int = 96, roughness: float = 2.1) -> np.ndarray:
    """A smooth random field (size, size) of mean 0 and standard deviation 1; cloud is where it is positive."""
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(noise / frequency**roughness, (size, size))
    return field / field.std()


def painted(share: np.ndarray, colour: str, ground: str) -> np.ndarray:
    """Shares (H, W) in [0, 1] as colours (H, W, 3): `colour` where it is 1, `ground` where it is 0."""
    return share[..., None] * np.array(to_rgb(colour)) + (1 - share[..., None]) * np.array(to_rgb(ground))


def image(field: np.ndarray, ground: str, sharpness: float = 3.0) -> np.ndarray:
    """White clouds over the ground; the lower the sharpness, the more they are haze."""
    return painted(1 / (1 + np.exp(-sharpness * field)), "white", ground)


def mask(field: np.ndarray, ground: str) -> np.ndarray:
    """A label: cloud white."""
    return painted((field > 0).astype(float), "white", ground)


def entropy_map(field: np.ndarray, colour: str) -> np.ndarray:
    """High along the outline of the clouds."""
    return painted(np.exp(-((field / 0.33) ** 2)), colour, "white")


def picture(ax: Axes, box: Box, pixels: np.ndarray, frame: str, caption: str = "", stacked: bool = True) -> Box:
    """A small framed picture, the first of several if `stacked`. Returns its place, the others and no caption in it."""
    back = 6 if stacked else 0
    for shift in (back, back / 2) if stacked else ():
        corner = box.x + shift, box.y - shift
        ax.add_patch(Rectangle(corner, *box[2:], fc="white", ec=frame, lw=1.6 * PIXEL, zorder=4))
    extent = (box.x, box.x + box.w, box.y + box.h, box.y)
    ax.imshow(pixels, extent=extent, interpolation="bilinear", zorder=4.5)
    ax.add_patch(Rectangle(box[:2], *box[2:], fill=False, ec=frame, lw=2.4 * PIXEL, zorder=4.6))
    words(ax, (box.centre[0], box.y + box.h + 17), caption)
    return Box(box.x, box.y - back, box.w + back, box.h + back)


def entropy_maps(ax: Axes, place: Box, fields: Sequence[np.ndarray], colours: Sequence[str]) -> list[Box]:
    """The entropy maps of two domains, one per head each, in a common frame. Returns the place of either domain."""
    rounded(ax, place, 9, "white", RULE, 1.6, zorder=2)
    words(ax, (place.centre[0], place.y + place.h - 19), "entropy maps")
    return [
        picture(ax, centred(place.x + share * place.w - 3, place.y + 46, 50, 50), entropy_map(field, colour), colour)
        for share, field, colour in zip((0.27, 0.75), fields, colours, strict=True)
    ]


def panel(ax: Axes, place: Box, number: int, name: str, script: str) -> None:
    """The ground of a stage, and its heading."""
    rounded(ax, place, 14, PANEL, RULE, 1.6, zorder=1)
    words(ax, (place.x + 18, place.y + 27), f"Stage {number}", TITLE, ha="left", weight="bold")
    words(ax, (place.x + 134, place.y + 28), name, NAME, ha="left")
    words(ax, (place.x + 18, place.y + 58), script, colour=GREY, ha="left", family="monospace")


def draw_inter(ax: Axes, place: Box) -> Box:
    """Stage 1. Returns the teacher."""
    panel(ax, place, 1, "inter-domain", "train_teacher.py")
    inputs, middle = place.x + 78, place.x + 287
    source, target = clouds(3), clouds(8)
    label = picture(ax, centred(inputs, 130, 68, 68), mask(source, SOURCE), SOURCE, "source labels")
    image_s = picture(ax, centred(inputs, 253, 68, 68), image(source, SOURCE), SOURCE, "source images")
    image_t = picture(ax, centred(inputs, 376, 68, 68), image(target, TARGET), TARGET, "target images")

    teacher = network(ax, centred(middle, 310, 162, 190), "teacher", at=(middle, 282))
    heads(ax, Box(middle - 70, 335, 66, 38))
    segmentation = pill(ax, centred(middle, 127, 190, 62), "cross-entropy", "+ soft Jaccard")
    arrow(ax, image_s.right(253), teacher.left(253), colour=SOURCE)
    arrow(ax, image_t.right(376), teacher.left(376), colour=TARGET)
    arrow(ax, label.right(127), segmentation.left(127), colour=SOURCE)
    arrow(ax, teacher.top(), segmentation.bottom(), colour=SOURCE)
    words(ax, (middle + 12, 187), "logits", ha="left")

    maps = centred(middle, 494, 162, 104)
    of_source, of_target = entropy_maps(ax, maps, (source, target), (SOURCE, TARGET))
    arrow(ax, teacher.bottom(of_source.centre[0]), of_source.top(), colour=SOURCE)
    arrow(ax, teacher.bottom(of_target.centre[0]), of_target.top(), colour=TARGET)
    discriminators = network(ax, centred(middle, 612, 190, 62), "discriminators", "one per head")
    arrow(ax, maps.bottom(middle - 12), discriminators.top(middle - 12), colour=SOURCE)
    arrow(ax, maps.bottom(middle + 12), discriminators.top(middle + 12), colour=TARGET)

    tell = pill(ax, Box(place.x + 10, 675, 198, 60), "discriminator", "source vs target")
    fool = pill(ax, Box(place.x + 216, 675, 198, 60), "adversarial", "target as source")
    arrow(ax, discriminators.left(600), (inputs, 600), tell.top(inputs), colour=SOURCE)
    arrow(ax, discriminators.left(624), (inputs + 24, 624), tell.top(inputs + 24), colour=TARGET)
    arrow(ax, discriminators.bottom(), fool.top(middle), colour=TARGET)
    return teacher


def draw_split(ax: Axes, place: Box, teacher: Box) -> tuple[Box, Box, Box]:
    """Stage 2. Returns the frozen teacher, the easy and the hard images."""
    panel(ax, place, 2, "split", "split_entropy.py")
    chart = rounded(ax, Box(place.x + 14, 430, 112, 244), 9, "white", RULE, 1.6)
    middle = chart.centre[0]
    images = picture(ax, centred(middle, 140, 68, 68), image(clouds(8), TARGET), TARGET)
    words(ax, (middle + 50, 140), "target\nimages", ha="left", ma="left")
    frozen = frozen_network(ax, centred(place.x + place.w / 2, 310, 162, 80), "teacher")
    arrow(ax, images.bottom(middle), frozen.top(middle), colour=TARGET)
    arrow(ax, teacher.right(), frozen.left(), dashed=True, colour=GREY)

    lengths = (11, 14, 18, 23, 29, 36, 58, 73, 90)
    easy_count, pitch = 6, 25.5
    for rank, length in enumerate(lengths):
        colour = EASY if rank < easy_count else HARD
        bar = chart.x + 10, chart.y + 12 + pitch * rank
        ax.add_patch(Rectangle(bar, length, 16, fc=colour, ec="none", zorder=5))
    cut = chart.y + 7.5 + pitch * easy_count
    ax.add_line(Line2D((chart.x, chart.x + chart.w), (cut, cut), color=INK, lw=2 * PIXEL, ls=(0, (3, 2)), zorder=5))
    arrow(ax, frozen.bottom(middle), chart.top(), colour=TARGET)
    words(ax, (middle + 12, 390), "mean entropy", ha="left")
    words(ax, (middle, 692), "ranking")

    column = place.x + place.w - 50
    easy_at, hard_at = (chart.y + cut - 7) / 2, (cut + chart.y + chart.h) / 2
    easy = picture(ax, centred(column, easy_at, 62, 62), image(clouds(12), EASY, 5), EASY, "easy")
    hard = picture(ax, centred(column, hard_at, 62, 62), image(clouds(21), HARD, 1), HARD, "hard")
    arrow(ax, chart.right(easy_at), easy.left(easy_at), colour=EASY)
    arrow(ax, chart.right(hard_at), hard.left(hard_at), colour=HARD)
    return frozen, easy, hard


def draw_intra(ax: Axes, place: Box, teacher: Box, easy: Box, hard: Box) -> None:
    """Stage 3, and the exported student."""
    panel(ax, place, 3, "intra-domain", "train_intra.py")
    bus, gap = place.x + 26, place.x - 19
    anchor = frozen_network(ax, Box(place.x + 52, 132, 144, 76), "anchor")
    ema = network(ax, Box(place.x + 526, 132, 172, 76), "EMA", "no gradient", FOLLOWS)
    trainee = Box(anchor.x, 455, place.x + place.w - 10 - anchor.x, 105)
    network(ax, trainee, "trainee", "starts as the teacher, gets the gradient", at=(trainee.x + 470, 507))
    main, aux = heads(ax, Box(trainee.x + 12, 511, 66, 38))

    # Inputs
    easy_at, hard_at = easy.y + easy.h - 31, hard.y + hard.h - 31
    arrow(ax, teacher.right(), (gap, teacher.centre[1]), (gap, 150), anchor.left(150), dashed=True, colour=GREY)
    arrow(ax, easy.right(easy_at), (bus, easy_at), (bus, 102), (ema.centre[0], 102), ema.top(), colour=EASY)
    bridge(ax, (bus, 150))
    arrow(ax, (bus, 188), anchor.left(188), colour=EASY)
    arrow(ax, (bus, 478), trainee.left(478), colour=EASY)
    arrow(ax, hard.right(hard_at), (gap, hard_at), (gap, 536), trainee.left(536), colour=HARD)

    # Pseudo-labels
    field = clouds(12)
    middle = (anchor.x + anchor.w + ema.x) / 2
    fuse = rounded(ax, centred(middle, 170, 150, 62), 9, "white", GREY, 1.6)
    words(ax, fuse.centre, "fuse: anchor\nself-guidance")
    pseudo = picture(ax, centred(middle, 266, 54, 54), mask(field, EASY), EASY, stacked=False)
    words(ax, (pseudo.x - 10, pseudo.centre[1]), "pseudo-\nlabels", ha="right", ma="right")
    arrow(ax, anchor.right(), fuse.left(), colour=EASY)
    arrow(ax, ema.left(), fuse.right(), colour=EASY)
    arrow(ax, fuse.bottom(), pseudo.top(), colour=EASY)

    # Losses on easy images
    cross = pill(ax, centred(middle, 361, 168, 60), "cross-entropy")
    contrast = pill(ax, centred(ema.x + 24, 361, 166, 60), "high-entropy\ncontrast")
    agree = pill(ax, centred((main.x + aux.x + aux.w) / 2, 636, 160, 60), "consistency", "main vs aux")
    arrow(ax, pseudo.bottom(), cross.top(), colour=EASY)
    arrow(ax, trainee.top(middle), cross.bottom(), colour=EASY)
    words(ax, (middle + 12, 424), "logits", ha="left")
    labels, features = contrast.x + 40, contrast.x + contrast.w - 70
    arrow(ax, pseudo.right(), (labels, pseudo.centre[1]), contrast.top(labels), colour=EASY)
    arrow(ax, ema.bottom(features), contrast.top(features), colour=EASY)
    words(ax, (features + 10, 270), "reliable\nfeatures,\nentropy", ha="left", ma="left")
    arrow(ax, trainee.top(features), contrast.bottom(features), colour=EASY)
    words(ax, (features + 10, 424), "features", ha="left")
    arrow(ax, main.bottom(), agree.top(main.centre[0]), colour=EASY)
    arrow(ax, aux.bottom(), agree.top(aux.centre[0]), colour=EASY)

    # Adversary
    maps = Box(trainee.x + 212, 606, 150, 104)
    of_easy, of_hard = entropy_maps(ax, maps, (field, clouds(21)), (EASY, HARD))
    arrow(ax, trainee.bottom(of_easy.centre[0]), of_easy.top(), colour=EASY)
    arrow(ax, trainee.bottom(of_hard.centre[0]), of_hard.top(), colour=HARD)
    discriminators = network(ax, Box(maps.x + maps.w + 30, 606, 188, 124), "discriminators", "one per head")
    arrow(ax, maps.right(640), discriminators.left(640), colour=EASY)
    arrow(ax, maps.right(664), discriminators.left(664), colour=HARD)
    tell = pill(ax, Box(place.x + place.w - 184, 603, 174, 60), "discriminator", "easy vs hard")
    fool = pill(ax, Box(place.x + place.w - 184, 673, 174, 60), "adversarial", "hard as easy")
    arrow(ax, discriminators.right(621), tell.left(621), colour=EASY)
    arrow(ax, discriminators.right(645), tell.left(645), colour=HARD)
    arrow(ax, discriminators.right(703), fool.left(703), colour=HARD)

    # Weights
    follow = ema.x + ema.w - 22
    arrow(ax, trainee.top(follow), ema.bottom(follow), dashed=True, colour=GREY)
    words(ax, (follow + 12, 361), "moving\naverage", ha="left", ma="left")
    student = network(ax, Box(place.x + place.w - 118, 132, 108, 76), "student", "exported", FOLLOWS)
    arrow(ax, ema.right(), student.left(), dashed=True, colour=GREY)


def draw_legend(ax: Axes, y: float) -> None:
    """What colours and shapes mean."""
    colours = ((SOURCE, "source"), (TARGET, "target"), (EASY, "target, easy"), (HARD, "target, hard"))
    shapes = (
        ("white", INK, 5, "trained"),
        (FROZEN, GREY, 5, "frozen"),
        (FOLLOWS, GREY, 5, "moving average"),
        (LOSS_FILL, LOSS, 9, "loss"),
    )
    x = 24.0
    for colour, name in colours:
        arrow(ax, (x, y), (x + 40, y), colour=colour)
        words(ax, (x + 50, y), name, ha="left")
        x += 90 + 10.5 * len(name)
    for fill, edge, radius, name in shapes:
        rounded(ax, Box(x, y - 12, 40, 24), radius, fill, edge, 2)
        words(ax, (x + 50, y), name, ha="left")
        x += 90 + 10.5 * len(name)
    arrow(ax, (x, y), (x + 40, y), colour=GREY, dashed=True)
    words(ax, (x + 50, y), "weights", ha="left")


def main() -> None:
    """Draw everything and write the file."""
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    teacher = draw_inter(ax, Box(8, 8, 424, 738))
    frozen, easy, hard = draw_split(ax, Box(470, 8, 236, 738), teacher)
    draw_intra(ax, Box(744, 8, 848, 738), frozen, easy, hard)
    draw_legend(ax, 778)
    ax.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), aspect="auto")
    ax.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    reduced = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256, kmeans=2)
    reduced.save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
