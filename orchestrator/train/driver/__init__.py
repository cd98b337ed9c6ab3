"""What the driver does: worker groups started, watched, grown and begun again."""
