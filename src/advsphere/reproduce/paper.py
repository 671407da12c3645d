"""The numbers of the paper's tables (Pang et al. 2020, arXiv 2002.08619), in %, as printed; nothing else is here."""

from __future__ import annotations

from advsphere.analysis.few_steps import PAPER as TABLE_7_CELLS

Numbers = dict[str, dict[str, float]]
"""By row, then by column."""

NETWORKS = {
    "torchvision:resnet50": "ResNet-50",
    "torchvision:resnet152": "ResNet-152",
    "torchvision:wide_resnet50_2": "WRN-50-2",
    "torchvision:wide_resnet101_2": "WRN-101-2",
    "wrn-34-10": "WRN-34-10",
    "wrn-34-20": "WRN-34-20",
}
"""What the paper's tables call our networks."""

_WHITE_BOX = ("clean", "PGD-20", "PGD-500", "MIM-20", "FGSM", "DeepFool", "C&W", "FeaAtt.", "FAB")
_CORRUPTIONS = (
    "mCA", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip


def _rows(columns: tuple[str, ...], rows: dict[str, tuple[float, ...]]) -> Numbers:
    return {name: dict(zip(columns, values, strict=True)) for name, values in rows.items()}


TABLE_2 = _rows(
    _WHITE_BOX,
    {
        "PGD-AT": (86.75, 53.97, 51.63, 55.08, 59.70, 57.26, 84.00, 52.38, 51.23),
        "PGD-AT+HE": (86.19, 59.36, 57.59, 60.19, 63.77, 61.56, 84.07, 52.88, 54.45),
        "ALP": (87.18, 52.29, 50.13, 53.35, 58.99, 59.40, 84.96, 49.55, 50.54),
        "ALP+HE": (89.91, 57.69, 51.78, 58.63, 65.08, 65.19, 87.86, 48.64, 51.86),
        "TRADES": (84.62, 56.48, 54.84, 57.14, 61.02, 60.70, 81.13, 55.09, 53.58),
        "TRADES+HE": (84.88, 62.02, 60.75, 62.71, 65.69, 60.48, 81.44, 58.13, 53.50),
    },
)
TABLE_3 = _rows(
    ("epochs", "clean", "PGD-50", "minutes"),
    {
        "FastAT": (30, 83.80, 46.40, 11.38),
        "FastAT+HE": (30, 82.58, 52.55, 11.48),
        "FastAT+m-HE": (30, 83.14, 53.49, 11.49),
        "FreeAT": (10, 77.21, 46.14, 15.78),
        "FreeAT+HE": (10, 76.85, 50.98, 15.87),
        "FreeAT+m-HE": (10, 77.59, 51.85, 15.91),
    },
)
TABLE_4 = _rows(
    ("clean", "PGD-10", "PGD-50"),
    {
        "ResNet-50 FreeAT": (60.28, 32.13, 31.39),
        "ResNet-50 FreeAT+HE": (61.83, 40.22, 39.85),
        "ResNet-152 FreeAT": (65.20, 36.97, 35.87),
        "ResNet-152 FreeAT+HE": (65.41, 43.24, 42.60),
        "WRN-50-2 FreeAT": (64.18, 36.24, 35.38),
        "WRN-50-2 FreeAT+HE": (65.28, 43.83, 43.47),
        "WRN-101-2 FreeAT": (66.15, 39.35, 38.23),
        "WRN-101-2 FreeAT+HE": (66.37, 45.35, 45.04),
    },
)
TABLE_5 = _rows(
    _CORRUPTIONS,
    {
        "PGD-AT": (77.23, 81.84, 79.69, 77.62, 80.88, 81.32, 77.95, 61.70, 84.05, 44.55, 80.79, 84.76, 84.35),
        "PGD-AT+HE": (77.29, 81.86, 79.45, 78.17, 80.87, 80.77, 77.98, 62.45, 83.67, 45.11, 80.69, 84.16, 84.10),
        "ALP": (77.73, 81.94, 80.31, 78.23, 80.97, 81.74, 79.26, 61.51, 84.88, 45.86, 80.91, 85.09, 84.68),
        "ALP+HE": (80.55, 80.87, 85.23, 81.26, 84.43, 85.14, 83.89, 68.83, 88.33, 50.74, 84.44, 87.44, 87.28),
        "TRADES": (75.36, 79.84, 77.72, 76.34, 78.66, 79.52, 76.94, 59.68, 82.06, 43.80, 78.53, 82.65, 82.31),
        "TRADES+HE": (75.78, 80.55, 77.61, 77.26, 79.62, 79.23, 76.53, 61.39, 82.33, 45.04, 79.29, 82.50, 82.40),
        "FreeAT": (28.22, 19.15, 26.63, 25.75, 28.25, 23.03, 23.47, 3.71, 45.18, 5.40, 41.76, 48.78, 52.55),
        "FreeAT+HE": (30.04, 21.16, 29.28, 28.08, 30.76, 26.62, 28.35, 5.34, 49.88, 7.03, 44.72, 51.17, 55.05),
    },
)
"""The last two are of ImageNet-C."""
TABLE_6 = _rows(
    ("clean", "RayS", "AutoAttack"),
    {"WRN-34-10 PGD-AT+HE": (86.25, 57.8, 53.16), "WRN-34-20 PGD-AT+HE": (85.14, 59.0, 53.74)},
)
TABLE_7: Numbers = {
    "standard training" + ", FN in the attack" * fn: {f"PGD-{k}": TABLE_7_CELLS[k, fn] for k in (1, 2)}
    for fn in (False, True)
}
