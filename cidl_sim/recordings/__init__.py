"""Recordings that other tools made (Instruments and others), as traces."""
