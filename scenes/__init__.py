"""Cloud masks of whole scenes of any size, in memory that depends on a scene's width alone.

    network = load_network("runs/demo/intra/student.safetensors")
    mask, probability, entropy = predict_array(network, image)                   # (H, W, C) -> three of (H, W)
    summary = predict_scene(network, "scene.tif", {"mask": Path("mask.tif")})    # file -> file

Nothing here imports a part of the training.
"""

from engine.data_record import Images
from scenes.network import CloudNetwork, load_network
from scenes.predict import Options, Result, Summary, predict_array, predict_scene

__all__ = ["CloudNetwork", "Images", "Options", "Result", "Summary", "load_network", "predict_array", "predict_scene"]
