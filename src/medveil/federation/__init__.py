"""Sites and a coordinator as state machines that exchange messages; how these travel is a transport's business."""
