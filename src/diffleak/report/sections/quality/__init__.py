"""The sections of the page on images and copies."""
