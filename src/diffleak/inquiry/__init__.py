"""`diffleak inquire`: were images of unknown membership in the training set?"""
