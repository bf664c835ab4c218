from scorefield.torchvision_ops import declare_before_import

declare_before_import()
