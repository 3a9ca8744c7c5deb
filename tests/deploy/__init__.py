"""The images and the chart."""
