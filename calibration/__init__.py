"""Everything that touches data: readers, preprocessing, augmentation, calibration sets, metrics."""
