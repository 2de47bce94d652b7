"""Masks as streams of rows: each function takes strips (h, W) uint8 from the top down, of any height, and gives strips.

Values are those of the mask: 0 clear, 1 cloud, 255 no data, which no function changes.
"""

from collections.abc import Iterator
from itertools import chain

import cv2
import numpy as np

from utils.labels import IGNORE

CLEAR, CLOUD = 0, 1


def without_small(strips: Iterator[np.ndarray], least: int) -> Iterator[np.ndarray]:
    """Clear every cloud of fewer than `least` pixels; pixels that touch at a corner are of one cloud.

    Holds back the rows of clouds that may yet grow. One of fewer than `least` pixels spans fewer than `least` rows, so
    at most that many rows are held beside the strip.
    """
    edge = held = np.zeros((0, 0), np.uint8)  # edge: the last row that was given; cloud in it is large enough
    for strip in chain(strips, [None]):
        rows = np.vstack([part for part in (edge, held, strip) if part is not None and len(part)])
        count, labels, statistics, _ = cv2.connectedComponentsWithStats((rows == CLOUD).view(np.uint8), connectivity=8)
        small = statistics[:, cv2.CC_STAT_AREA] < least
        small[0] = False  # what is no cloud
        small[np.unique(labels[: len(edge)])] = False
        growing = np.zeros(count, bool)
        if strip is not None:
            growing[np.unique(labels[-1])] = True
        rows[(small & ~growing)[labels]] = CLEAR
        done = int(statistics[small & growing, cv2.CC_STAT_TOP].min(initial=len(rows)))
        if done > len(edge):
            yield rows[len(edge) : done].copy()
        edge, held = rows[max(0, done - 1) : done], rows[done:]


def dilated(strips: Iterator[np.ndarray], radius: int) -> Iterator[np.ndarray]:
    """Make cloud of every pixel with data whose centre is at most `radius` pixels from that of a cloud pixel.

    Holds twice `radius` rows beside the strip.
    """
    above = held = np.zeros((0, 0), np.uint8)
    for strip in chain(strips, [None]):
        rows = np.vstack([part for part in (above, held, strip) if part is not None and len(part)])
        done = len(rows) if strip is None else max(len(above), len(rows) - radius)
        if done > len(above):
            distance = cv2.distanceTransform((rows != CLOUD).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            near = (distance <= radius + 1e-3) & (rows != IGNORE)
            yield np.where(near, np.uint8(CLOUD), rows)[len(above) : done]
        above, held = rows[max(0, done - radius) : done], rows[done:]
