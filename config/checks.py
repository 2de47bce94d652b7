"""What several keys together cannot be; what one alone can be stands at its field."""

from collections.abc import Iterator

from config.fields import fault, faults, flatten
from config.schema import AUTO, LIKE_SOURCE, SHIFT8, Config, DomainConfig
from datasets.readers import READERS


def config_faults(config: Config) -> Iterator[str]:
    """A sentence for every value that its own field or another value does not allow."""
    yield from faults(config)
    values = flatten(config)
    yield from (fault(key, values[key], expected) for key, holds, expected in _relations(config) if not holds)


def _relations(config: Config) -> Iterator[tuple[str, object, str]]:
    """The key at fault, whether its value can be, and what is expected where it cannot."""
    data, net, teacher, intra = config.data, config.net, config.teacher, config.intra
    yield "source.root", config.source.root or config.eval.weights, "the folder of the labelled domain"
    yield "target.root", config.target.root, "the folder of the unlabelled domain"
    yield from _relations_of_domain("source", config.source)
    yield from _relations_of_domain("target", config.target)
    yield "data.tile", data.tile is None or data.tile >= data.size, "data.size or more, or null"
    yield "net.mean", (net.mean is None) == (net.std is None), "both net.mean and net.std, or neither"
    dilated = net.decoder == "deeplab_v2"
    yield "net.output_stride", dilated or net.output_stride is None, f"null, where decoder is {net.decoder}"
    yield "net.layout", dilated or net.layout == "timm", f"timm, where decoder is {net.decoder}"
    expected = "a multiple of 32, where decoder is fpn"
    yield "net.decoder_width", net.decoder != "fpn" or net.decoder_width % 32 == 0, expected
    for stage, batch in (("teacher", teacher.batch), ("intra", intra.batch)):
        expected = "more than speed.pieces where data.size is below 64, for batch normalisation of the coarsest level"
        yield f"{stage}.batch", dilated or data.size >= 64 or batch > config.speed.pieces, expected
    clan = "clan" in (teacher.alignment, intra.alignment)
    expected = "last, where alignment is clan: its two classifiers read the same features"
    yield "net.aux_level", not clan or net.aux_level == "last", expected

    oracle = teacher.supervise == "target"
    yield "teacher.alignment", not oracle or teacher.alignment == "none", "none for the oracle"
    yield "intra.enabled", not (oracle and intra.enabled), "false for the oracle (teacher.supervise: target)"
    rules = intra.self_training
    for stage, options, names in (
        ("teacher", teacher.options, [teacher.alignment]),
        ("intra", intra.options, [intra.alignment, intra.contrast, *rules]),
    ):
        expected = f"settings of what is chosen ({', '.join(names)}) alone"
        yield f"{stage}.options", {*options} <= {*names}, expected

    mixed = intra.step == "source_target"
    yield "intra.step", mixed or not rules, "source_target, which has self_training"
    yield "intra.anchor", intra.anchor == "online" or intra.step == "asda", "online unless step is asda"


def _relations_of_domain(role: str, domain: DomainConfig) -> Iterator[tuple[str, object, str]]:
    expected = f"0 where {role}.eval is given, or {role}.eval null"
    yield f"{role}.eval_share", domain.eval is None or not domain.eval_share, expected
    yield f"{role}.gamma", domain.gamma == 1 or domain.scaling != SHIFT8, f"1 where scaling is {SHIFT8}"
    known = domain.reader in READERS and READERS[domain.reader].bands is not None
    expected = "null: this reader knows them; choose among them by data.bands"
    yield f"{role}.bands", not (known and domain.bands), expected
    if isinstance(scaling := domain.scaling, list):
        yield f"{role}.scaling", len(scaling) == 2 and scaling[0] < scaling[1], "[low, high] with low below high"
    else:
        rules = ["train", *[LIKE_SOURCE, AUTO] * (role == "target"), SHIFT8]
        yield f"{role}.scaling", scaling is None or scaling in rules, f"{', '.join(rules)} or [low, high]"
