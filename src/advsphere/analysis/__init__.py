"""What to look at besides one number: curves, pictures, angles, gradients, and the paper's claims put to the test."""

from advsphere.analysis.agreement import Agreement, agreement_figure
from advsphere.analysis.anatomy import Anatomy, dissect
from advsphere.analysis.angles import Angles, directions, margin_figure, measure, norm_figure
from advsphere.analysis.balance import Balance, balance_figure, relief
from advsphere.analysis.claims import Claim, Evidence, balanced, effective, hard, margins
from advsphere.analysis.classwise import ClassAccuracy, by_class, class_figure, weakest
from advsphere.analysis.crafted import Crafted, craft
from advsphere.analysis.curves import Curve, accuracy_against_eps, curve_figure
from advsphere.analysis.diagnosis import Diagnosis, diagnose
from advsphere.analysis.examination import Examination, Network, examine
from advsphere.analysis.few_steps import FewSteps, few_steps, few_steps_figure, table7
from advsphere.analysis.gradients import LayerGradients, gradient_figure, layer_gradients, recorded
from advsphere.analysis.gradients import record as gradient_record
from advsphere.analysis.hardness import Hardness, hardness, hardness_figure
from advsphere.analysis.heatmap import corruption_figure
from advsphere.analysis.pictures import Picture, fooled_by, pictures, strongest
from advsphere.analysis.ratios import diagnosed, ratio_figure, ratio_history_figure
from advsphere.analysis.resampling import Estimate, bootstrap
from advsphere.analysis.sheet import both_ways, first_right, picture_figure
from advsphere.analysis.spread import Sample, Spread, spread_figure, spread_of_angles
from advsphere.analysis.steps import StepsCurve, accuracy_against_steps, steps_figure
from advsphere.analysis.strips import stored_strips, strip, strip_figure
from advsphere.analysis.surface import Surface, loss_surface, surface_figure

__all__ = [
    "Agreement",
    "Anatomy",
    "Angles",
    "Balance",
    "Claim",
    "ClassAccuracy",
    "Crafted",
    "Curve",
    "Diagnosis",
    "Estimate",
    "Evidence",
    "Examination",
    "FewSteps",
    "Hardness",
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
    "bootstrap",
    "both_ways",
    "by_class",
    "class_figure",
    "corruption_figure",
    "craft",
    "curve_figure",
    "diagnose",
    "diagnosed",
    "directions",
    "dissect",
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
