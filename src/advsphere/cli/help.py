"""Help texts that do not depend on any setting. They are here so that they can be printed without importing torch."""

TRAIN = """usage: advsphere train RECIPE [--out DIR] [--resume] [--he] [--objective NAME] [--diagnose] [OVERRIDES]

Trains a recipe, or a config in a YAML file, and writes a run's folder: config.yaml, last.safetensors,
best.safetensors (chosen on held-out training images), metrics.jsonl and TensorBoard files. Interrupt it at any time;
--resume continues exactly where it stopped.

  advsphere train digits-pgd-at-he
  advsphere train cifar10-fastat --data.root ~/data --epochs 15 --he
  advsphere train folder-pgd-at --data.root photos --data.image-size 64 --model.name timm:resnet18 --he

Name your own parts as package.module:object; the module must be in the current folder or installed:

  advsphere train digits-pgd-at --objective mine.mart:MART --objective.beta 6 --optimizer torch.optim:AdamW --lr 1e-3
  advsphere train folder-pgd-at --data.name mine.data:photos --model.name mine.nets:build

--threat.norm and --threat.eps set the threat model for training, validation and evaluation. --objective.threat.* sets
a different one for training.

On several GPUs or machines the command and its settings stay the same: --batch-size is the global batch size, and --lr
applies to it. If a process dies, it is restarted and all processes continue from the last checkpoint:

  torchrun --nproc-per-node 8 --max-restarts 3 -m advsphere train imagenet-freeat-he-resnet50 --resume

--diagnose also records, after each epoch, the ratio of adversarial to clean gradient norms of each layer;
`advsphere diagnose` plots it.

`advsphere recipes` lists the recipes; `advsphere train RECIPE --help` lists all settings of one, with their values."""

RECIPES = """usage: advsphere recipes [WORD]

Lists the recipes, grouped by the table of the paper that they belong to. With WORD it lists only recipes whose name
contains it, with their sources and uncertainties.
Train one with `advsphere train RECIPE`; `advsphere train RECIPE --help` shows all its settings."""
