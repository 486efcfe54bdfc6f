"""Two-stage clustering of images on frozen features.

Axis letters used in every shape comment of this package:

====  =======================================================
N     rows of the cache (images)
V     cached augmented views per image
D     width of an embedding
K     mined neighbors per row
T     trials trained in one pass
H     heads per trial
G     all heads of a pass, G = T * H
C     clusters of a head
B     pairs per training step
====  =======================================================
"""
