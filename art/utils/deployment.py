"""The import path that programs use to deploy a checkpoint elsewhere."""

from art_core.client.deployment import (
    DeploymentConfig,
    DeploymentResult,
    TogetherDeploymentConfig,
    WandbDeploymentConfig,
    deploy_model,
)

__all__ = ["DeploymentConfig", "DeploymentResult", "TogetherDeploymentConfig", "WandbDeploymentConfig", "deploy_model"]
