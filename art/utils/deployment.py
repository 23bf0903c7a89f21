"""The import path that programs use to deploy a checkpoint elsewhere."""

from art_core.client.deployment import DeploymentConfig, DeploymentResult, deploy_model

WandbDeploymentConfig = TogetherDeploymentConfig = DeploymentConfig
"""What programs name them; the provider's publisher says which options there are."""

__all__ = ["DeploymentConfig", "DeploymentResult", "TogetherDeploymentConfig", "WandbDeploymentConfig", "deploy_model"]
