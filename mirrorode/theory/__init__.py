"""What is claimed: margins, balance and the verdicts along a trajectory."""
