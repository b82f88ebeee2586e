"""What components are built with. No component is in here: those are one file each in the folders beside."""
