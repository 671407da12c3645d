"""What to look at besides one number: curves, pictures, angles, gradients, and the paper's claims put to the test."""

from advsphere.analysis.agreement import Agreement, agreement_figure
from advsphere.analysis.angles import (
    Angles,
    HeadParts,
    Sample,
    Spread,
    directions,
    margin_figure,
    measure,
    norm_figure,
    split_head,
    spread_figure,
    spread_of_angles,
)
from advsphere.analysis.balance import Balance, balance_figure, relief
from advsphere.analysis.canvas import corruption_figure
from advsphere.analysis.claims import Claim, Evidence, balanced, effective, hard, margins
from advsphere.analysis.classwise import ClassAccuracy, by_class, class_figure, weakest
from advsphere.analysis.curves import (
    Curve,
    StepsCurve,
    accuracy_against_eps,
    accuracy_against_steps,
    curve_figure,
    steps_figure,
)
from advsphere.analysis.diagnosis import Diagnosis, diagnose, diagnosed, ratio_figure, ratio_history_figure
from advsphere.analysis.examination import Examination, Network, examine
from advsphere.analysis.feature_normalization import FewSteps, few_steps, few_steps_figure, table7
from advsphere.analysis.gradients import LayerGradients, gradient_figure, layer_gradients, recorded
from advsphere.analysis.gradients import record as gradient_record
from advsphere.analysis.hard_examples import Crafted, Hardness, craft, hardness, hardness_figure
from advsphere.analysis.perturbations import (
    Picture,
    both_ways,
    first_right,
    fooled_by,
    picture_figure,
    pictures,
    stored_strips,
    strip,
    strip_figure,
    strongest,
)
from advsphere.analysis.surface import Surface, loss_surface, surface_figure

__all__ = [
    "Agreement",
    "Angles",
    "Balance",
    "Claim",
    "ClassAccuracy",
    "Crafted",
    "Curve",
    "Diagnosis",
    "Evidence",
    "Examination",
    "FewSteps",
    "Hardness",
    "HeadParts",
    "LayerGradients",
    "Network",
    "Picture",
    "Sample",
    "Spread",
    "StepsCurve",
    "Surface",
    "accuracy_against_eps",
    "accuracy_against_steps",
    "agreement_figure",
    "balance_figure",
    "balanced",
    "both_ways",
    "by_class",
    "class_figure",
    "corruption_figure",
    "craft",
    "curve_figure",
    "diagnose",
    "diagnosed",
    "directions",
    "effective",
    "examine",
    "few_steps",
    "few_steps_figure",
    "first_right",
    "fooled_by",
    "gradient_figure",
    "gradient_record",
    "hard",
    "hardness",
    "hardness_figure",
    "layer_gradients",
    "loss_surface",
    "margin_figure",
    "margins",
    "measure",
    "norm_figure",
    "picture_figure",
    "pictures",
    "ratio_figure",
    "ratio_history_figure",
    "recorded",
    "relief",
    "split_head",
    "spread_figure",
    "spread_of_angles",
    "steps_figure",
    "stored_strips",
    "strip",
    "strip_figure",
    "strongest",
    "surface_figure",
    "table7",
    "weakest",
]
