from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0005_replicas'),
    ]

    operations = [
        migrations.RemoveField(
            model_name='deployment',
            name='measured',
        ),
        migrations.RemoveField(
            model_name='deployment',
            name='percent',
        ),
        migrations.RemoveField(
            model_name='deployment',
            name='phase',
        ),
        migrations.RemoveField(
            model_name='deployment',
            name='server',
        ),
        migrations.RemoveField(
            model_name='deployment',
            name='tunnel',
        ),
    ]
