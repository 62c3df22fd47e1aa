"""SimCLR's views as torchvision users draw them: per image, on PIL pictures, in a DataLoader's workers."""
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms


class Views(Dataset):
    def __init__(self, pixels, mean, std):
        side = pixels.shape[1]
        self.pictures = [Image.fromarray(picture) for picture in pixels.numpy()]
        self.change = transforms.Compose([
            transforms.RandomResizedCrop(side, scale=(0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize([mean] * 3, [std] * 3),
        ])

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.change(self.pictures[index]), self.change(self.pictures[index])


def loader(batch, side, mean, std, workers):
    """Pairs of views of random pixels, without end."""
    data = Views(torch.randint(0, 256, (8 * batch, side, side, 3), dtype=torch.uint8), mean, std)
    endless = RandomSampler(data, replacement=True, num_samples=batch * 10**6)
    return iter(DataLoader(data, batch, sampler=endless, num_workers=workers, drop_last=True))
