"""The commands of `points-reversal`: what they are asked, and what a person or a script reads of the answer."""
