"""Files that clients upload: checked by their purpose, kept by their content, found again by their owners."""
