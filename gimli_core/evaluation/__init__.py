"""What an inner loop comes to, without a gradient: adapt runs it, evaluate measures it over tasks."""
