"""How good a video is: clips whose content is known, what can be measured in one, and how it compares."""
