"""Many runs: the members of a campaign, their queue, the pipeline of stages, tuning, the leaderboard."""
