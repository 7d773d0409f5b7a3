"""Images in: DICOM, NIfTI, PNG, JPEG and npz become volumes, and volumes become arrays of one kind."""
