"""Pictures compared by what a network sees in them: FID, KID, precision and recall."""
