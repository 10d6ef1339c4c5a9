"""Why a prediction is what it is: members, views, Grad-CAM."""
