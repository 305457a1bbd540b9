"""Defences that train models: DualMD, DistillMD, and the controls of a fair comparison."""
