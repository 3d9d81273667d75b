"""Attribution: class activation maps, saliency maps, and measures of their faithfulness."""
