"""Images: folders of PNG, JPEG, WebP and the like."""
