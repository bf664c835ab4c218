import warnings

from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()

# Lightning's own use of a torch interface that torch has renamed; nothing that a user could act on.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
