"""Which images of a run's domains are scored, how its models see them, and what that makes of the scores."""

from dataclasses import replace
from pathlib import Path

from config.load import recorded_config
from config.schema import Config, DomainConfig
from engine.domains import Role, domain_of, evaluation_images, with_scaling_of
from engine.layout import models_in
from report.evaluation import Domain
from utils.errors import ConfigError
from utils.records import reading

HELD_BACK = "held-back images"
TRANSDUCTIVE = "transductive: the images adapted to, labels hidden"
LESS_MEMORY = (
    "Training needs more, so see what else is using it, or give --device cpu; eval.parts leaves parts out, and "
    "eval.pictures and eval.tsne_pixels make them smaller"
)


def seen_as_trained(domain: Domain, config: Config) -> Domain:
    """A target with a view for each model of the run that was trained with another scaling, as source-only may be."""
    if domain.role == "source" or config.eval.weights is not None:
        return domain
    views = {}
    for model in models_in(config.out):
        decoder = with_scaling_of(str(model.weights(config.out)), domain.images.decoder)
        if decoder != domain.images.decoder:
            views[model.name] = replace(domain.images, decoder=decoder, cache=None)
    return domain._replace(views=views)


def check_view(config: Config, stage: Path) -> None:
    """Raise a ConfigError where a setting differs from the stage's own config.yaml, or that is damaged: a network would
    be shown images in another way than in training, or training images would pass for held-back ones."""
    record = stage / "config.yaml"
    if not record.exists():
        return
    keys = {"data": ["size", "geometry", "tile", "bands"]}
    with reading(record, "the config.yaml of a stage", "restore it, or train again with another --out", ConfigError):
        before = recorded_config(record)
        for role, domain in (("source", config.source), ("target", config.target)):
            if config.eval.weights is None and before[role]["root"] == domain.root:
                keys[role] = ["eval_share", "bands", "nodata", "scale", "offset"] + ["scene"] * bool(domain.eval_share)
                keys[role] += ["scaling", "gamma"] * (role == "source")  # of the target, each model brings its own
        known = [(section, name) for section, names in keys.items() for name in names if name in before[section]]
        trained_with = [(section, name, before[section][name]) for section, name in known]
    for section, name, then in trained_with:
        if then != (now := getattr(getattr(config, section), name)):
            raise ConfigError(
                f"{section}.{name} is {now!r}, but {stage} was trained with {then!r}; "
                f"give the configuration of the run, such as --config {record}"
            )


def held_back(domain: DomainConfig) -> bool:
    """Whether a domain has images that do not train."""
    return domain.eval is not None or domain.eval_share > 0


def evaluation_domains(config: Config) -> list[Domain]:
    """The target, and the source where it has held-back images."""
    roles: list[Role] = ["target", "source"] if config.source.root and held_back(config.source) else ["target"]
    domains = []
    for role in roles:
        domain = domain_of(config, role)
        protocol = HELD_BACK if held_back(domain) else TRANSDUCTIVE
        if config.eval.weights is not None:
            protocol = "given images; whether the weights were trained on them is not known"
        domains.append(Domain(role, domain, protocol, evaluation_images(config, role)))
    return domains
