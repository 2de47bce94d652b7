"""The steps of stage 3 that a method may choose beside ASDA's own, by name (`intra.step`)."""

from methods.asda_released import AsdaReleasedStage
from methods.intrada import IntraDAStage
from methods.source_target import SourceTargetStage
from methods.student import StudentStage

STEPS: dict[str, type[StudentStage]] = {
    "asda_released": AsdaReleasedStage,
    "intrada": IntraDAStage,
    "source_target": SourceTargetStage,
}
